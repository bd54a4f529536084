"""One rule for the fields of a row, whoever reads it: what is absent, left out, made text, counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from observer.turns.conversation import Unusable, said_in, turns_of_messages
from observer.turns.inputs import read_inputs
from observer.turns.row_fields import as_id, conversation_in, row_fields

SAID = "I started at Rewe in Köln last May."


def turns(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns_of_messages(list(messages))]


@pytest.mark.parametrize(
    "content",
    [
        SAID,
        [SAID],
        [{"type": "text", "text": SAID}],
        [{"type": "input_text", "text": SAID}],
        [{"type": "output_text", "text": SAID, "annotations": []}],
        [{"text": SAID}],
        [{"type": "text", "text": {"value": SAID, "annotations": []}}],
        [{"type": "text", "content": SAID}],
        {"type": "text", "text": SAID},
        {"content_type": "text", "parts": [SAID]},
        [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": SAID}],
        [{"type": "thinking", "thinking": "hm", "text": "hm"}, {"type": "text", "text": SAID}],
        [{"type": "tool_use", "input": {}}, SAID],
        [None, {"type": "text", "text": SAID}],
        {"content_type": "multimodal_text", "parts": [{"content_type": "image_asset_pointer", "width": 1}, SAID]},
        [{"content_type": "audio_transcription", "text": SAID, "direction": "in"}],
        [{"type": "text", "text": [SAID]}],
        [{"type": "document", "text": "a page"}, {"type": "text", "text": SAID}],
        [{"type": "mcp_tool_result", "content": [{"type": "text", "text": "7"}]}, {"type": "text", "text": SAID}],
        [{"content_type": "sonic_webpage", "text": "a page"}, SAID],
    ],
)
def test_content_is_text_or_parts_of_any_kind(content: Any) -> None:
    assert turns({"role": "user", "content": content}) == [("user", SAID)]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([{"type": "note", "text": SAID}], "messages.0.content.0: found a part of type 'note'; text is read from"),
        ([{"type": "text", "text": 5}], "messages.0.content.0: found a part of type 'text'"),
        (5, "messages.0.content: text is expected, found '5'"),
        ([5], "messages.0.content: text is expected"),
    ],
)
def test_text_that_we_cannot_read_is_told_and_never_dropped(content: Any, fault: str) -> None:
    with pytest.raises(Unusable, match=fault.replace("[", r"\[")):
        turns_of_messages([{"role": "user", "content": content}])


@pytest.mark.parametrize("key", ["text", "content", "parts"])
@pytest.mark.parametrize("depth", [100, 300, 400, 900])
def test_parts_within_parts_are_read_or_told_at_any_depth(key: str, depth: int) -> None:
    content = f'[{{"{key}": ' * depth + '"hi"' + "}]" * depth
    text = f'{{"messages": [{{"role": "user", "content": {content}}}]}}'
    found = read_inputs(text.encode(), "x")
    assert len(found.items) + len(found.unreadable) == 1 and (found.items or depth > 100)
    assert all(item.fields["user_message"] == "hi" for item in found.items)
    assert all("nested too deeply" in row.reason or "not JSON" in row.reason for row in found.unreadable)


@pytest.mark.parametrize("user", ["user", "User", "HUMAN", "human", "prompter", " customer "])
@pytest.mark.parametrize("assistant", ["assistant", "Assistant", "gpt", "model", "bot", "AI", "chatgpt"])
@pytest.mark.parametrize(
    ("who", "what"),
    [
        ("role", "content"),
        ("from", "value"),
        ("role", "parts"),
        ("sender", "text"),
        ("author", "text"),
        ("type", "content"),
    ],
)
def test_the_usual_names_of_roles_and_fields_are_read(user: str, assistant: str, who: str, what: str) -> None:
    messages = [{who: user, what: "hi"}, {who: assistant, what: [{"text": "hello"}] if what == "parts" else "hello"}]
    assert turns(*messages) == [("user", "hi"), ("assistant", "hello")]


@pytest.mark.parametrize(
    "role", "system developer tool function function_call function_call_output observation Tool_Response".split()
)
def test_system_and_tool_turns_are_left_out(role: str) -> None:
    messages = [{"role": role, "content": "x"}, {"role": "user", "content": "hi"}]
    assert turns(*messages) == [("user", "hi")]
    row = row_fields({"user_message": "hi", "context": messages})
    assert row.fields["context"] == [{"role": "user", "content": "hi"}]


def test_what_tools_are_asked_and_answer_in_the_name_of_others_is_no_turn() -> None:
    """As in logs of Anthropic's API."""
    messages = [
        {"role": "user", "content": "How warm is it in Oslo, where I live?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "7 degrees"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "7 degrees."}]},
    ]
    assert turns(*messages) == [("user", messages[0]["content"]), ("assistant", "7 degrees.")]
    both = [{"type": "tool_result", "content": "7"}, {"type": "text", "text": "And in Rome?"}]
    assert turns({"role": "user", "content": both}) == [("user", "And in Rome?")]
    assert turns({"role": "user", "content": [{"type": "image"}]}) == [("user", "")]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({"toolUse": {"name": "weather"}}, {"toolResult": {"content": [{"text": "7"}]}}),
        ({"functionCall": {"name": "weather"}}, {"functionResponse": {"response": {"text": "7"}}}),
        ({"type": "server_tool_use"}, {"type": "web_search_tool_result", "content": [{"text": "7"}]}),
        ({"type": "file_search_call"}, {"type": "function_call_output", "output": "7"}),
        ({"type": "tool-weather", "state": "x"}, {"type": "tool-invocation", "text": "7"}),
    ],
)
def test_calls_of_every_provider_are_no_turns(asked: dict[str, Any], answered: dict[str, Any]) -> None:
    messages = [
        {"role": "user", "content": SAID},
        {"role": "assistant", "content": [asked]},
        {"role": "user", "content": [answered]},
        {"role": "assistant", "content": [asked, {"type": "text", "text": "7 degrees."}]},
    ]
    assert turns(*messages) == [("user", SAID), ("assistant", "7 degrees.")]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "human", "data": {"content": SAID, "type": "human"}},
        {"lc": 1, "type": "constructor", "kwargs": {"content": SAID, "type": "human"}},
        {"type": "user", "message": {"role": "user", "content": SAID}},
        {"role": "USER", "message": SAID},
        {"role": "user", "blocks": [{"block_type": "text", "text": SAID}]},
        {"speaker": "user", "utterance": SAID},
    ],
)
def test_a_message_within_a_message_and_other_names_of_its_text_are_read(message: dict[str, Any]) -> None:
    assert turns(message) == [("user", SAID)]


def test_a_refusal_is_what_the_assistant_said() -> None:
    assert turns({"role": "assistant", "content": None, "refusal": "I can't."}) == [("assistant", "I can't.")]


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_whose_text_is_not_found_is_told(role: str) -> None:
    with pytest.raises(Unusable, match=r"messages.0: no text found, of the fields role, phrase; content is expected"):
        turns_of_messages([{"role": role, "phrase": SAID}])


def test_a_role_that_is_none_of_them_is_told() -> None:
    with pytest.raises(Unusable, match=r"messages.0.author: unknown value {'id': 7}; allowed: "):
        turns_of_messages([{"author": {"id": 7}, "content": "x"}])
    with pytest.raises(Unusable, match=r"messages.0.from: unknown value 'narrator'; allowed: ai, assistant"):
        turns_of_messages([{"from": "narrator", "value": "x"}])


@pytest.mark.parametrize("key", ["timestamp", "created_at", "create_time", "ts"])
def test_messages_bring_their_own_time(key: str) -> None:
    said = said_in([{"role": "user", "content": "hi", key: 1700000000}, {"role": "user", "content": "hi", key: 12.5}])
    assert [one.at and one.at.isoformat() for one in said] == ["2023-11-14T22:13:20+00:00", None]


def test_null_is_absent_and_ids_are_text() -> None:
    given = {
        "user_message": "hi", "assistant_message": None, "context": None, "id": 1.0, "family": 7, "at": "2026-01-01",
        "label": None, "mood": "good", "gone": None,
    }  # fmt: skip
    found = row_fields(given)
    assert found.fields == {"user_message": "hi", "id": "1", "family": "7"}
    assert (found.at, found.unused) == ("2026-01-01", ("mood",))
    assert [as_id(value) for value in (1, 1.0, 1.5, "1")] == ["1", "1", "1.5", "1"]
    assert row_fields({"user_message": "hi", "id": float("nan"), "label": float("nan")}).fields == {
        "user_message": "hi"
    }


@pytest.mark.parametrize("value", [True, [1], {"$oid": "5f"}])
def test_an_id_that_is_neither_text_nor_a_number_is_told(value: Any) -> None:
    with pytest.raises(Unusable, match="id: text or a number is expected"):
        row_fields({"user_message": "hi", "id": value})
    (row,) = read_inputs(
        json.dumps({"id": value, "messages": [{"role": "user", "content": "hi"}]}).encode(), "x"
    ).unreadable
    assert row.reason.startswith("id: text or a number is expected")


@pytest.mark.parametrize("texts", [["hi", "bye"], {"0": "hi", "1": "bye"}])
def test_columns_are_no_row(texts: Any) -> None:
    for columns in ({}, {"assistant_message": texts}):
        with pytest.raises(Unusable, match="user_message: a column, not a row; pandas"):
            row_fields({"user_message": texts} | columns)


def node(parent: str | None, role: str, text: str) -> dict[str, Any]:
    message = {
        "author": {"role": role},
        "content": {"content_type": "text", "parts": [text]},
        "create_time": 1700000000,
    }
    return {"parent": parent, "message": message}


def test_a_branch_of_chatgpts_export_is_read_up_to_its_end() -> None:
    tree = {
        "root": {"parent": None, "message": None}, "a": node("root", "user", "hi"),
        "b": node("a", "assistant", "hello"), "c": node("a", "assistant", "hey"), "d": node("c", "user", "I moved"),
    }  # fmt: skip
    for end, expected in (("d", ["hi", "hey", "I moved"]), ("b", ["hi", "hello"]), (None, ["hi", "hey", "I moved"])):
        found = conversation_in({"title": "t", "mapping": tree, "current_node": end})
        assert found and [turn.content for turn in turns_of_messages(*found)] == expected
    for odd in ([], {}, 7):
        found = conversation_in({"mapping": tree | {"d": node(odd, "user", "hi")}, "current_node": odd})  # type: ignore
        assert found and [turn.content for turn in turns_of_messages(*found)] == ["hi"]
    noted = node("d", "assistant", "User moved")
    tree |= {"e": noted | {"message": noted["message"] | {"recipient": "bio"}}, "f": node("e", "assistant", "Nice!")}
    found = conversation_in({"mapping": tree, "current_node": "f"})
    assert found and [turn.content for turn in turns_of_messages(*found)] == ["hi", "hey", "I moved", "Nice!"]
    circle = {"a": node("b", "user", "hi"), "b": node("a", "assistant", "hello")}
    assert conversation_in({"mapping": circle, "current_node": "a"})


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"messages": [1]}, "messages"),
        ({"messages": None, "conversations": [1]}, "conversations"),
        ([{"role": "user", "content": "hi"}], "messages"),
        ([{"from": "human", "value": "hi"}], "messages"),
        ({"chat_messages": [{"sender": "human", "text": "hi"}]}, "chat_messages"),
        ({"contents": [{"role": "user", "parts": [{"text": "hi"}]}], "model": "m"}, "contents"),
        ({"turns": [{"role": "user", "content": "hi"}]}, "turns"),
        ({"a": [{"role": "user", "content": "hi"}], "b": [{"role": "user", "content": "hi"}]}, None),
        ({"prompt": [{"role": "user", "content": "hi"}], "chosen": "x"}, None),
        ({"context": [{"role": "user", "content": "hi"}]}, None),
        ({"user_message": "hi"}, None),
        ([], None),
        ([{"user_message": "hi"}], None),
    ],
)
def test_what_is_a_conversation(value: Any, key: str | None) -> None:
    found = conversation_in(value)
    assert (found and found[1]) == key


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "rename `instruction` to user_message and `output` to"),
        ({"prompt": "a", "completion": "b"}, "rename `prompt` to user_message and `completion` to assistant_message"),
        ({"question": "a", "answer": "b"}, "rename `question` to user_message and `answer` to assistant_message"),
        ({"text": "a"}, "rename `text` to user_message"),
        ({"text": "<|im_start|>user\nhi<|im_end|>"}, "`text` holds a whole conversation; write its turns as"),
        ({"text": "Human: hi\n\nAssistant: hello"}, "`text` holds a whole conversation"),
        ({"role": "user", "content": "hi"}, "one message; a conversation goes in one line"),
        ({"mood": 1}, "neither `user_message` nor `messages`, found the fields mood"),
        ({}, "found the fields (none)"),
    ],
)  # fmt: skip
def test_what_is_no_row_comes_with_a_way_on(value: dict[str, Any], advice: str) -> None:
    with pytest.raises(Unusable) as error:
        row_fields(value)
    assert advice in str(error.value)
