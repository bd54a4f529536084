"""What a split can hold out of a raw row: the families of its wording, and the names in its text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from observer.schema import USER, ExtractionRow, RawRow

Words = tuple[str, ...]
"""A name or a text in a form to compare: case-folded words without punctuation."""


@dataclass(frozen=True)
class Traits:
    """What a split can hold out of one row: families of its wording, names in its text."""

    families: frozenset[str]
    names: frozenset[Words]


def find_traits(rows: Sequence[RawRow]) -> list[Traits]:
    """Families and names of every row; a name counts wherever it stands, also in rows that do not declare it."""
    declared = [declared_names(row) for row in rows]
    pool = frozenset[Words]().union(*declared)
    traits = []
    for row, own in zip(rows, declared, strict=True):
        text = " \n".join([*(turn.content for turn in row.context), row.user_message, row.assistant_message])
        found = {words for _, words in find_names(split_words(text), pool)}
        families = row.family.split("+") if row.family else [masked_turn(row.user_message, pool)]
        traits.append(Traits(frozenset(families), own | found))
    return traits


def declared_names(row: RawRow) -> frozenset[Words]:
    """`names` of a row, else its gold entities but `User`, in comparable words."""
    names = row.names
    if not names and isinstance(row, ExtractionRow):
        names = [entity.name for entity in row.entities if entity.name != USER]
    return frozenset(split_words(name) for name in names) - {()}


def split_words(text: str) -> Words:
    return tuple(re.findall(r"\w+", text.casefold()))


def find_names(words: Words, pool: frozenset[Words]) -> list[tuple[int, Words]]:
    """Every name of the pool in the text with its position, longer ones first where two begin together."""
    longest = max(map(len, pool), default=0)
    found = []
    for start in range(len(words)):
        candidates = (words[start : start + length] for length in range(min(longest, len(words) - start), 0, -1))
        found += [(start, candidate) for candidate in candidates if candidate in pool]
    return found


def masked_turn(text: str, pool: frozenset[Words]) -> str:
    """The wording of a user turn: case, names, numbers and punctuation do not count."""
    words = list(split_words(text))
    end = 0
    for start, name in find_names(tuple(words), pool):
        if start >= end:
            end = start + len(name)
            words[start:end] = ["_"] + [""] * (len(name) - 1)
    return "turn: " + re.sub(r"\d+", "0", " ".join(filter(None, words)))
