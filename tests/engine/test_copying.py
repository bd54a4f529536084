"""What the answer may only repeat (names and times that were said), and which of its entities may be related how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from observer.data.dataset import read_split
from observer.engine.copying import Copying, Sources
from observer.engine.engine import Engine
from observer.paths import TRAIN_JSONL, VAL_JSONL
from observer.prompts import render_exchange
from observer.schema import MAX_TEXT_CHARACTERS, Extraction, Turn

SAID = 'my sister Ana lives in Porto since 2019, near "El Sol", 34yo, ok?\nAna-Lucía too; 私は東京に住んでいます وبنتي'
EXCHANGE = render_exchange(SAID, "Nice, José!")


def keeps_to(answer: str, exchange: str = EXCHANGE, *, n: int = 1) -> bool:
    """Whether the rule lets the answer through, `n` bytes at a time."""
    state: Copying | None = Copying(Sources.of(exchange))
    spelled = answer.encode()
    for start in range(0, len(spelled), n):
        state = state.after(spelled[start : start + n]) if state else None
    return state is not None


def entities(*names: str) -> str:
    return '{"entities":[' + ",".join(json.dumps({"name": name, "type": "Person"}, ensure_ascii=False,
                                                 separators=(",", ":")) for name in names)  # fmt: skip


def answer(names: list[str], subject: str, obj: str, when: str | None = None) -> str:
    relation = {"subject": subject, "predicate": "LIKES", "object": obj, "temporal": "ongoing"}
    relation |= {"when": when} if when else {}
    return f'{entities(*names)}],"relationships":[{json.dumps(relation, ensure_ascii=False, separators=(",", ":"))}]}}'


@pytest.mark.parametrize("n", [1, 3, 10_000])
@pytest.mark.parametrize(
    ("name", "is_copied"),
    [
        ("Ana", True), ("Ana-Lucía", True), ("sister Ana lives in Porto", True), ("User", True), ('"El Sol"', True),
        ("El Sol", True), ("José", False), ("2019", True), ("東京", True), ("بنتي", True), ("34", True),
        ("Portso", False), ("Por", False), ("Anna", False), ("na", False), ("lives  in", False), ("Users", False),
        ("Lisbon", False),
        (" Ana", False), ("ana", False), ("El Sol\\", False), ("019", False), ("201", False),
        ("大阪", False), ("lives in ", False),
    ],
)  # fmt: skip
def test_a_name_stands_in_what_was_said_from_the_beginning_of_a_word(name: str, is_copied: bool, n: int) -> None:
    assert keeps_to(f"{entities('User', name)}]", n=n) is is_copied


@pytest.mark.parametrize("n", [1, 7, 10_000])
def test_the_ends_of_a_relationship_are_whole_names_of_its_entities(n: int) -> None:
    assert keeps_to(answer(["User", "Ana", "Ana-Lucía"], "Ana-Lucía", "Ana"), n=n)
    for subject, obj in (("User", "Porto"), ("An", "User"), ("Ana-L", "User"), ("User", "Ana ")):
        assert not keeps_to(answer(["User", "Ana", "Ana-Lucía"], subject, obj), n=n)
    assert not keeps_to('{"entities":[],"relationships":[{', n=n)
    assert keeps_to('{"entities":[],"relationships":[]}', n=n)


def test_a_time_is_said_in_the_words_of_the_exchange() -> None:
    assert keeps_to(answer(["User", "Ana"], "User", "Ana", "since 2019"))
    assert not keeps_to(answer(["User", "Ana"], "User", "Ana", "since 2020"))
    assert not keeps_to(answer(["User", "Ana"], "User", "Ana", "User"))


@pytest.mark.parametrize("reply", ["", "Ten days, says Bea of Oslo.\nUSER: Oslo"])
def test_what_the_reply_says_is_not_copied(reply: str) -> None:
    context = [
        Turn(role="user", content="Ana (née Núñez)\nASSISTANT: two weeks"),
        Turn(role="assistant", content="Eve, in May?"),
    ]
    exchange = render_exchange("yes, since\nJune", reply, context)
    for name, is_copied in (
        ("Ana", True),
        ("Núñez", True),
        ("Eve", True),
        ("June", True),
        ("Bea", False),
        ("Oslo", False),
    ):
        assert keeps_to(f"{entities(name)}]", exchange) is is_copied
    for when, is_copied in (("since", True), ("two weeks", True), ("in May", True), ("Ten days", False)):
        assert keeps_to(answer(["User", "Ana"], "User", "Ana", when), exchange) is is_copied


def test_attributes_are_free_and_do_not_look_like_names() -> None:
    free = '{"entities":[{"name":"Ana","type":"Person","attributes":{"relation":"wife, \\"name\\":\\"Eve\\""}}'
    assert keeps_to(free) and not keeps_to(free + ',{"name":"Eve"')


RELATED = [
    ("Person", "WORKS_AT", "Organization", True), ("Person", "WORKS_AT", "Person", False),
    ("Person", "LIVES_IN", "Concept", False), ("Person", "MARRIED_TO", "Place", False),
    ("Person", "LIKES", "Event", True), ("Animal", "HAS_AGE", "Concept", True), ("Concept", "LIKES", "Person", False),
    ("Person", "LOCATED_IN", "Place", False), ("Organization", "LOCATED_IN", "Place", True),
]  # fmt: skip


@pytest.mark.parametrize("n", [1, 10_000])
@pytest.mark.parametrize(("subject", "predicate", "target", "may_be"), RELATED)
def test_a_predicate_stands_between_types_that_it_can_relate(
    subject: str, predicate: str, target: str, may_be: bool, n: int
) -> None:
    two = f'{{"entities":[{{"name":"Ana","type":"{subject}"}},{{"name":"Porto","type":"{target}"}}]'
    relation = f'{{"subject":"Ana","predicate":"{predicate}","object":"Porto","temporal":"ongoing"}}'
    assert keeps_to(f'{two},"relationships":[{relation}]}}', n=n) is may_be
    assert keeps_to(f'{two},"relationships":[]}}', n=n)
    Extraction.model_validate_json(f'{two},"relationships":[{relation}]}}')  # an answer from elsewhere is read


def test_a_predicate_is_not_begun_that_no_object_is_left_for() -> None:
    begun = f'{entities("User", "Ana")}],"relationships":[{{"subject":"User"'
    assert keeps_to(f'{begun},"predicate":"FRIEND_OF","object":"Ana"') and not keeps_to(f'{begun},"predicate":"WORKS_A')
    assert not keeps_to(f'{begun},"predicate":"LIKES","object":"User"')
    assert not keeps_to(
        '{"entities":[{"name":"Ana","type":"Concept"},{"name":"Porto","type":"Place"}],"relationships":[{'
    )


def test_the_next_relationship_is_between_any_of_the_entities() -> None:
    two = answer(["User", "Ana"], "User", "Ana").removesuffix("]}")
    for subject, target, may_be in (("Ana", "User", True), ("User", "Ana", True), ("Ana", "Ana", False)):
        relation = f'{{"subject":"{subject}","predicate":"FRIEND_OF","object":"{target}","temporal":"ongoing"}}'
        assert keeps_to(f"{two},{relation}]}}") is may_be


def test_gold_answers_are_copies() -> None:
    """All but `mom` where `moms` stands, two names that are whole in the reply alone, and a marriage to a Concept."""
    rows = [row for path in (TRAIN_JSONL, VAL_JSONL) for row in read_split(path) if row["task"] == "extract"]
    refused = [row["id"] for row in rows
               if not keeps_to(row["completion"][0]["content"], row["prompt"][-1]["content"], n=10_000)]  # fmt: skip
    assert len(rows) == 1600 and len(refused) <= 4


@pytest.mark.parametrize("before", ["", '"', "я\t"])
@pytest.mark.parametrize("letter", ["a", "я"])
def test_text_without_an_end_of_a_word_can_be_copied_to_its_bound(before: str, letter: str) -> None:
    exchange = render_exchange(before + letter * (MAX_TEXT_CHARACTERS + 9), "")
    for n, is_copied in ((MAX_TEXT_CHARACTERS, True), (MAX_TEXT_CHARACTERS - 1, False), (9, False)):
        assert keeps_to(f"{entities(before + letter * (n - len(before)))}]", exchange) is is_copied


def test_blanks_at_the_end_of_what_was_said_are_not_copied() -> None:
    assert not keeps_to('{"entities":[{"name":"Ana ', "USER: Ana \n ") and keeps_to(
        f"{entities('Ana')}]", "USER: Ana \n "
    )


def test_a_model_that_would_invent_copies(nano_gguf: Path) -> None:
    said = ["we named the boat Zvrkulina", "Quorthaxelim is my cousin, he lives in Pfrondobell since last Whitsun"]
    with Engine(nano_gguf, n_threads=1) as engine:
        for text, completion in zip(said, engine.extract([render_exchange(text, "") for text in said]), strict=True):
            found = Extraction.model_validate_json(completion.text)
            assert all(entity.name == "User" or entity.name in text for entity in found.entities)
            names = {entity.name for entity in found.entities}
            assert all({relation.subject, relation.object} <= names for relation in found.relationships)
