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
class _Range:
    start: int
    end: int
    kind: Literal["name", "secret"]
    note: str


def pieces_of(message: Message, observation: Observation) -> list[Piece]:
    """The message, left to right. A secret's text is left out; of names that overlap, the first and longest counts."""
    pieces: list[Piece] = []
    position = 0
    for mark in _without_overlaps(_ranges(message.place, observation)):
        pieces += _plain(message.text[position : mark.start])
        pieces.append(_marked(message.text, mark))
        position = mark.end
    return pieces + list(_plain(message.text[position:]))


def visible(text: str) -> str:
    """One line in which control characters are written out as `U+202E`."""
    return "".join(piece.text for piece in _plain(" ".join(text.split())))


def _marked(text: str, mark: _Range) -> Piece:
    if mark.kind == "secret":
        return Piece("", "secret", mark.note)
    return Piece(visible(text[mark.start : mark.end]), "name", mark.note)


def _ranges(place: str, observation: Observation) -> Iterator[_Range]:
    for redaction in observation.redactions:
        if redaction.span.message == place:
            yield _Range(redaction.span.start, redaction.span.end, "secret", redaction.kind.replace("_", " "))
    for entity in observation.entities:
        for span in entity.spans:
            if span.message == place:
                yield _Range(span.start, span.end, "name", str(entity.type))


def _without_overlaps(ranges: Iterator[_Range]) -> Sequence[_Range]:
    """Secrets before names, then the leftmost, then the longest."""
    kept: list[_Range] = []  # by their place in the text
    for mark in sorted(ranges, key=lambda mark: (mark.kind != "secret", mark.start, -mark.end)):
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
