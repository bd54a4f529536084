"""A message cut into pieces: names that the model found, secrets that it never saw, and plain text between.

Pieces hold text as it is; the template that shows them escapes it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from observer.errors import HIDDEN_CHARACTERS
from observer.observation import Observation
from observer.turns.grounding import Message

_HIDDEN_CONTROL = regex.compile(rf"[{HIDDEN_CHARACTERS}\ufff9-\ufffb]")
"""Characters that show nothing, or turn round what is beside them."""


@dataclass(frozen=True)
class Piece:
    """`note` is the entity's type, the kind of the secret, or empty."""

    text: str
    kind: Literal["text", "name", "secret", "control"] = "text"
    note: str = ""


@dataclass(frozen=True)
class _Mark:
    start: int
    end: int
    piece: Piece


def pieces_of(message: Message, observation: Observation) -> list[Piece]:
    """The message, left to right. A secret's text is left out; of names that overlap, the first and longest counts."""
    pieces: list[Piece] = []
    position = 0
    for mark in _without_overlaps(_marks(message, observation)):
        pieces += _plain(message.text[position : mark.start])
        pieces.append(mark.piece)
        position = mark.end
    return pieces + list(_plain(message.text[position:]))


def visible(text: str) -> str:
    """One line in which control characters are written out as `U+202E`."""
    return "".join(piece.text for piece in _plain(" ".join(text.split())))


def _marks(message: Message, observation: Observation) -> Iterator[_Mark]:
    for redaction in observation.redactions:
        if (span := redaction.span).message == message.place:
            yield _Mark(span.start, span.end, Piece("", "secret", redaction.kind.replace("_", " ")))
    for entity in observation.entities:
        for span in entity.spans:
            if span.message == message.place:
                text = visible(message.text[span.start : span.end])
                yield _Mark(span.start, span.end, Piece(text, "name", str(entity.type)))


def _without_overlaps(marks: Iterator[_Mark]) -> Sequence[_Mark]:
    """Secrets before names, then the leftmost, then the longest."""
    kept: list[_Mark] = []  # by their place in the text
    for mark in sorted(marks, key=lambda mark: (mark.piece.kind != "secret", mark.start, -mark.end)):
        place = bisect_left(kept, mark.end, key=lambda other: other.start)
        if place == 0 or kept[place - 1].end <= mark.start:
            kept.insert(place, mark)
    return kept


def _plain(text: str) -> Iterator[Piece]:
    text, position = text.replace("\r\n", "\n"), 0
    for match in _HIDDEN_CONTROL.finditer(text):
        if match.start() > position:
            yield Piece(text[position : match.start()])
        yield Piece(f"U+{ord(match.group()):04X}", "control")
        position = match.end()
    if position < len(text):
        yield Piece(text[position:])
