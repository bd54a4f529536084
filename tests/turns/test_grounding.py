"""Names are found where they stand in the caller's own text, and whoever wrote them is named."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.observation import Exchange
from observer.schema import Turn
from observer.turns.grounding import find_name, fold, messages_of, stated_by


def found(name: str, text: str) -> list[str]:
    """The pieces of the text that are the name."""
    return [text[span.start : span.end] for span in find_name(name, messages_of(Exchange(user_message=text)))]


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("Siemens", "I left Siemens, then siemens's rival; SIEMENS!", ["Siemens", "siemens", "SIEMENS"]),
        ("Siemens", "Siemensstadt, aSiemens, Siemens1, Siemens_x", []),
        ("Ana", "Ana and Anastasia, Ana-Maria", ["Ana", "Ana"]),
        (
            "Café Zoë",
            "Cafe\u0301 Zoe\u0308, CAFÉ  ZOË, Café\r\n  Zoë",
            ["Cafe\u0301 Zoe\u0308", "CAFÉ  ZOË", "Café\r\n  Zoë"],
        ),
        ("Straße", "STRASSE and straße", ["STRASSE", "straße"]),
        ("東京", "東京都に住む", ["東京"]),
        ("서울", "서울에서 왔어요", ["서울"]),
        ("กรุงเทพ", "อยู่กรุงเทพครับ", ["กรุงเทพ"]),
        ("C++", "C++ and C", ["C++"]),
        ("O'Brien", "with O'Brien.", ["O'Brien"]),
        ("aa", "aa aa", ["aa", "aa"]),
        ("in in", "in in in", ["in in"]),
        ("Sie\x00mens", "Sie\x00mens, Siemens", ["Sie\x00mens", "Siemens"]),
        ("", "text", []),
        (" ", "text here", []),
        ("Bosch", "", []),
    ],
)
def test_a_name_stands_by_itself_in_any_letters(name: str, text: str, pieces: list[str]) -> None:
    assert found(name, text) == pieces


def test_every_message_is_searched_in_order() -> None:
    exchange = Exchange(
        user_message="Bosch, yes",
        assistant_message="Bosch!",
        context=[Turn(role="user", content="Siemens"), Turn(role="assistant", content="Siemens or Bosch?")],
    )
    spans = find_name("Bosch", messages_of(exchange))
    assert [(span.message, span.start, span.end) for span in spans] == [
        ("context[1]", 11, 16),
        ("user", 0, 5),
        ("assistant", 0, 5),
    ]


def test_nothing_is_found_inside_what_is_hidden() -> None:
    messages = messages_of(Exchange(user_message="Rex7 Rex7"), {"user": [(0, 4)]})
    assert [(span.start, span.end) for span in find_name("Rex7", messages)] == [(5, 9)]


CONTEXT = [Turn(role="assistant", content="Do you work at Siemens?"), Turn(role="user", content="Guess in 2019")]


@pytest.mark.parametrize(
    ("evidence", "speaker"),
    [
        (["Bosch"], "user"),
        (["Lisbon"], "assistant"),
        (["Ana"], "both"),
        (["Bosch", "Lisbon"], "both"),
        (["Bosch", "Ana"], "user"),
        (["Siemens"], "assistant"),
        (["Siemens", "Bosch"], "both"),
        (["Siemens", "in 2019"], "both"),
        (["Nowhere"], None),
        (["Bosch", "Nowhere"], None),
        ([], None),
    ],
)
def test_who_wrote_the_evidence(evidence: list[str], speaker: str | None) -> None:
    exchange = Exchange(user_message="Ana is at Bosch", assistant_message="Ana, in Lisbon?", context=CONTEXT)
    assert stated_by(evidence, messages_of(exchange)) == speaker


@given(st.text(max_size=30), st.text(max_size=12), st.text(max_size=30))
def test_a_name_between_blanks_is_found_and_its_span_folds_to_it(before: str, name: str, after: str) -> None:
    text = f"{before} {name} {after}"
    pieces = found(name, text)
    assert all(fold(piece) == fold(name) for piece in pieces)
    if fold(name) and not unicodedata.combining(name.strip()[:1] or "x"):
        assert pieces or fold(name) not in fold(text).split()
