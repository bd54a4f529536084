"""Names are copied, never invented: what of an extraction may only repeat what was said.

The name of an entity and the words of a time (`when`) stand in the exchange as they are written, before the assistant's
last reply, or the name is `User`. A relationship has two names of the answer's own entities, and a predicate that can
stand between their types. The rows of the data keep to this, and a grammar cannot say it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Self, get_args

from observer.schema import MAX_TEXT_CHARACTERS, USER, EntityType, Predicate, can_relate

_Field = Literal["name", "type", "subject", "predicate", "object", "when"]
_FIELDS: dict[bytes, _Field] = {f'"{field}":"'.encode(): field for field in get_args(_Field)}
"""By what stands before each in our compact JSON. Within a string quotes are escaped: none looks so."""
_PARTS: tuple[_Field, ...] = ("subject", "predicate", "object")
_RELATIONSHIP = b'"relationships":[{'
_LONGEST = max(map(len, [*_FIELDS, _RELATIONSHIP]))
_CHARACTER = re.compile(rb"\\.|[^\x80-\xbf]", re.DOTALL)
"""In JSON, as the grammar counts them."""
_TYPES = frozenset(kind.encode() for kind in EntityType)


@dataclass(frozen=True)
class Sources:
    """What may be copied, from a start of a word to an end: `text` is what was said as JSON spells it, then `User`."""

    text: bytes
    starts: tuple[int, ...]
    starts_of_names: tuple[int, ...]
    ends: frozenset[int]

    @classmethod
    def of(cls, exchange: str) -> Self:
        """Those of a rendered exchange without its reply: what the assistant answers, the user has not stated."""
        last = exchange.rfind("\nUSER: ") + 1
        said = exchange[:last] + exchange[last:].partition("\nASSISTANT: ")[0]
        spelled, starts, ends, before = bytearray(), [], [], " "
        for letter in said.rstrip() + "\n":  # no text that JSON spells goes on over a newline
            if not _are_of_one_word(before, letter):
                if not before.isspace():
                    ends.append(len(spelled))
                if not letter.isspace():
                    starts.append(len(spelled))
            spelled += json.dumps(letter, ensure_ascii=False)[1:-1].encode("utf-8", "replace")
            before = letter
        text = bytes(spelled[:-2]) + b"\n" + USER.encode()
        return cls(text, tuple(starts), (*starts, len(text) - len(USER)), frozenset([*ends, len(text)]))


_Triple = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Copying:
    """How far an answer has come.

    Within the `value` of a `field`: what it may become (`options`), else the `places` of `sources` that go on so.
    """

    sources: Sources
    names: tuple[bytes, ...] = ()
    types: tuple[bytes, ...] = ()
    triples: tuple[_Triple, ...] = ()
    """What the relationship that is being written may still be."""
    field: _Field | None = None
    value: bytes = b""
    places: tuple[int, ...] = ()
    options: frozenset[bytes] = frozenset()
    is_escaped: bool = False
    tail: bytes = b""

    def after(self, piece: bytes) -> Copying | None:
        """The state after some bytes more; None where they are no copy."""
        state: Copying | None = self
        for byte in piece:
            state = state._outside(byte) if state.field is None else state._within(byte)
            if state is None:
                return None
        return state

    def _outside(self, byte: int) -> Copying | None:
        tail = (self.tail + bytes([byte]))[-_LONGEST:]
        if tail.endswith(_RELATIONSHIP) and not _triples(self.names, self.types):
            return None  # between whom
        field = next((field for opening, field in _FIELDS.items() if tail.endswith(opening)), None)
        if field is None:
            return replace(self, tail=tail)
        inside = replace(self, field=field, value=b"", tail=b"", options=frozenset())
        if field == "type":
            return replace(inside, options=_TYPES)
        if field in _PARTS:
            triples = _triples(self.names, self.types) if field == "subject" else self.triples
            return replace(inside, triples=triples, options=frozenset(t[_PARTS.index(field)] for t in triples))
        return replace(inside, places=self.sources.starts if field == "when" else self.sources.starts_of_names)

    def _within(self, byte: int) -> Copying | None:
        if byte == ord('"') and not self.is_escaped:
            return self._ended() if self._is_whole() else None
        value, text = self.value + bytes([byte]), self.sources.text
        is_escaped = byte == ord("\\") and not self.is_escaped
        if self.options:
            is_begun = any(option.startswith(value) for option in self.options)
            return replace(self, value=value, is_escaped=is_escaped) if is_begun else None
        n = len(self.value)
        places = tuple(place for place in self.places if text[place + n : place + n + 1] == value[-1:])
        return replace(self, value=value, places=places, is_escaped=is_escaped) if places else None

    def _is_whole(self) -> bool:
        """Whether the value may end here; one that the grammar lets grow no longer always may."""
        if self.options:
            return self.value in self.options
        n = len(self.value)
        is_full = len(_CHARACTER.findall(self.value)) >= MAX_TEXT_CHARACTERS
        return is_full or any(place + n in self.sources.ends for place in self.places)

    def _ended(self) -> Copying:
        if self.field == "name":
            return replace(self, names=(*self.names, self.value), field=None)
        if self.field == "type":
            return replace(self, types=(*self.types, self.value), field=None)
        if self.field == "when":
            return replace(self, field=None)
        i = _PARTS.index(self.field)
        return replace(self, triples=tuple(t for t in self.triples if t[i] == self.value), field=None)


@lru_cache(maxsize=64)
def _triples(names: tuple[bytes, ...], types: tuple[bytes, ...]) -> tuple[_Triple, ...]:
    """All that may be said of entities, of no one with itself."""
    entities = [(name, EntityType(kind.decode())) for name, kind in zip(names, types, strict=True)]
    return tuple(
        (subject, predicate.encode(), target)
        for subject, subject_type in entities
        for target, target_type in entities
        for predicate in Predicate
        if subject != target and can_relate(subject_type, predicate, target_type)
    )


def _are_of_one_word(one: str, other: str) -> bool:
    """Digits, or letters of a script with capitals: others may part no words."""
    return (one.isdecimal() and other.isdecimal()) or (one.lower() != one.upper() and other.lower() != other.upper())
