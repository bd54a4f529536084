"""One renderer for every prompt: normalized, free of control tokens, impossible to forge a turn in."""

from __future__ import annotations

import re
import unicodedata

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer.prompts import (
    CHAT_TEMPLATE,
    CUES,
    SYSTEM_PROMPT,
    Task,
    clean,
    exchange_of,
    prompt_messages,
    render_chatml,
    render_exchange,
    render_prompt,
    training_row,
)
from observer.schema import Turn, parse_row

PIECES = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<THINK >",
    "<tool_call>",
    "<|",
    "|>",
    "<",
    "|",
    ">",
    "\n",
    "\r\n",
    "\r",
    "\u2028",
    "\x85",
    "\x0b",
    "USER: ",
    "ASSISTANT: ",
    "system\n",
    "e\u0301",
    "\u0301",
    "각",
    "\u1100\u1161",
    "é",
    "🙂",
    "\ud800",
    "\x00",
    "e\x00\u0301",
    "\t",
    " ",
    "مرحبا",
    "{{ x }}",
    "{% raw %}",
]
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)
CONTROL = re.compile(r"<\|[^<>]*\|>|<\|\w|\|>|</?think\b|</?tool_call\b|</?tool_response\b", re.IGNORECASE)
quick = settings(max_examples=300)


@given(hostile)
@quick
def test_clean_is_idempotent(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(hostile)
@quick
def test_no_control_token_survives(text: str) -> None:
    assert not CONTROL.search(clean(text))


@given(hostile)
@quick
def test_clean_text_is_nfc_and_encodable_and_breaks_lines_in_one_way(text: str) -> None:
    cleaned = clean(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    assert len(cleaned.splitlines()) <= cleaned.count("\n") + 1
    assert not any(character in cleaned for character in "\x00\r\u2028\x85")


@given(st.text(alphabet=st.characters(whitelist_categories=["L", "N", "Zs"]), max_size=40))
@quick
def test_ordinary_text_is_only_normalized(text: str) -> None:
    assert clean(text) == unicodedata.normalize("NFC", text)


@given(hostile, hostile, st.lists(st.builds(Turn, role=st.sampled_from(["user", "assistant"]), content=hostile)))
@quick
def test_a_message_cannot_forge_a_role_line(user: str, assistant: str, context: list[Turn]) -> None:
    lines = render_exchange(user, assistant, context).split("\n")
    markers = [line for line in lines if line.startswith(("USER:", "ASSISTANT:"))]
    assert len(markers) == len(context) + 1 + bool(assistant.strip())
    assert all(line.startswith("  ") for line in lines if line not in markers)


@given(hostile, hostile)
@quick
def test_a_prompt_has_exactly_its_own_control_tokens(user: str, assistant: str) -> None:
    prompt = render_prompt(Task.EXTRACT, render_exchange(user, assistant))
    assert re.findall(r"<\|.*?\|>", prompt) == ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"]


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), hostile.map(clean)), min_size=1, max_size=4),
    st.booleans(),
)
@quick
def test_render_chatml_is_what_the_chat_template_renders(messages: list[tuple[str, str]], add: bool) -> None:
    # the environment of transformers.utils.chat_template_utils, where models saved by us are used
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    rows = [{"role": role, "content": content} for role, content in messages]
    rendered = environment.from_string(CHAT_TEMPLATE).render(messages=rows, add_generation_prompt=add)
    assert rendered == render_chatml(rows, add_generation_prompt=add)


def test_the_template_shows_no_capability_that_a_server_would_act_on() -> None:
    for substring in ("tools", "<think>", "</think>", "tool_call", "enable_thinking"):
        assert substring not in CHAT_TEMPLATE


def test_an_exchange_is_rendered_a_line_a_turn() -> None:
    context = [Turn(role="user", content="hi"), Turn(role="assistant", content="hello\nthere")]
    assert render_exchange(" I moved \r\nto Lisbon ", "", context) == (
        "USER: hi\nASSISTANT: hello\n  there\nUSER: I moved \n  to Lisbon"
    )


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<|im_end|>", "< |im_end| >"),
        ("<think>a</think>", "< think>a< /think>"),
        ("a <| b", "a < | b"),
        ("if a<b|c>d", "if a<b|c>d"),
        ("Cafe\u0301", "Café"),
        ("Cafe\x00\u0301", "Café"),
        ("<\x00|im_end|>", "< |im_end| >"),
        ("thinking <thinker>", "thinking <thinker>"),
    ],
)
def test_what_neutralised_text_looks_like(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_training_row_ends_its_prompt_where_the_answer_begins() -> None:
    row, _ = parse_row({"user_message": "thanks", "assistant_message": "", "label": "DISCARD", "id": "a"})
    assert row
    trained = training_row(row)
    assert trained["prompt"] == prompt_messages(Task.GRADE, "USER: thanks")
    assert trained["completion"] == [{"role": "assistant", "content": "DISCARD"}]
    whole = render_chatml(trained["prompt"] + trained["completion"], add_generation_prompt=False)
    assert whole == render_prompt(Task.GRADE, "USER: thanks") + "DISCARD<|im_end|>"


def test_system_prompt_and_cues_are_clean_single_lines() -> None:
    assert CUES.keys() == set(Task)
    for text in (SYSTEM_PROMPT, *CUES.values()):
        assert clean(text) == text
        assert "\n" not in text
        assert '"' not in text
    assert all(cue in SYSTEM_PROMPT for cue in CUES.values())


@given(hostile, hostile, st.sampled_from(Task))
@quick
def test_no_text_can_forge_the_line_that_names_the_task(user: str, assistant: str, task: Task) -> None:
    other = next(cue for cue in CUES.values() if cue != CUES[task])
    text = f"{user}\n{other}\n{assistant}\r{other}"
    lines = prompt_messages(task, render_exchange(text, text, [Turn(role="user", content=text)]))[-1]["content"].split(
        "\n"
    )
    assert lines[-1] == CUES[task] and other not in lines
    assert lines.count(CUES[task]) == 1


def test_both_tasks_have_the_same_prompt_up_to_the_cue() -> None:
    grade, extract = (render_prompt(task, "USER: hi").rpartition("USER: hi\n") for task in Task)
    assert grade[:2] == extract[:2]
    assert grade[2].replace(CUES[Task.GRADE], CUES[Task.EXTRACT]) == extract[2]
    row, _ = parse_row({"user_message": "thanks", "assistant_message": "", "label": "DISCARD"})
    assert row and exchange_of(training_row(row)) == "USER: thanks"
