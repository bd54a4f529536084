"""Names are copied, never invented: what of an extraction may only repeat what stands in the exchange.

The name of an entity and the words of a time (`when`) stand in the exchange as they are written, or the name is `User`;
both ends of a relationship are names of the answer's own entities. The rows of the data keep to this, and a grammar
cannot say it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal, Self

from observer.schema import MAX_TEXT_CHARACTERS, USER

_KINDS: dict[bytes, Literal["name", "endpoint", "when"]] = {
    b'"name":"': "name", b'"subject":"': "endpoint", b'"object":"': "endpoint", b'"when":"': "when",
}  # fmt: skip
"""What is copied, by what stands before it in our compact JSON. Within a string quotes are escaped: none looks so."""
_RELATIONSHIP = b'"relationships":[{'
_LONGEST = max(map(len, [*_KINDS, _RELATIONSHIP]))


@dataclass(frozen=True)
class Sources:
    """What may be copied, from a start of a word to an end: `text` is the exchange as JSON spells it, then `User`."""

    text: bytes
    starts: tuple[int, ...]
    ends: frozenset[int]
    user: int

    @classmethod
    def of(cls, exchange: str) -> Self:
        """Those of a rendered exchange."""
        spelled, starts, ends, before = bytearray(), [], [], " "
        for letter in exchange.rstrip() + "\n":  # no text that JSON spells goes on over a newline
            if not _are_of_one_word(before, letter):
                if not before.isspace():
                    ends.append(len(spelled))
                if not letter.isspace():
                    starts.append(len(spelled))
            spelled += json.dumps(letter, ensure_ascii=False)[1:-1].encode("utf-8", "replace")
            before = letter
        text = bytes(spelled[:-2]) + b"\n" + USER.encode()
        return cls(text, tuple(starts), frozenset([*ends, len(text)]), len(text) - len(USER))


@dataclass(frozen=True)
class Copying:
    """How far an answer has come: within a `value` that is copied, the `places` of `sources` that go on as it does."""

    sources: Sources
    names: tuple[bytes, ...] = ()
    kind: Literal["name", "endpoint", "when"] | None = None
    value: bytes = b""
    places: tuple[int, ...] = ()
    is_escaped: bool = False
    tail: bytes = b""

    def after(self, piece: bytes) -> Copying | None:
        """The state after some bytes more; None where they are no copy."""
        state: Copying | None = self
        for byte in piece:
            state = state._outside(byte) if state.kind is None else state._within(byte)
            if state is None:
                return None
        return state

    def _outside(self, byte: int) -> Copying | None:
        tail = (self.tail + bytes([byte]))[-_LONGEST:]
        if not self.names and tail.endswith(_RELATIONSHIP):
            return None  # between whom
        kind = next((kind for opening, kind in _KINDS.items() if tail.endswith(opening)), None)
        if kind is None:
            return replace(self, tail=tail)
        places = (*self.sources.starts, self.sources.user) if kind == "name" else self.sources.starts
        return replace(self, kind=kind, value=b"", places=places, tail=b"")

    def _within(self, byte: int) -> Copying | None:
        if byte == ord('"') and not self.is_escaped:
            names = (*self.names, self.value) if self.kind == "name" else self.names
            return replace(self, names=names, kind=None) if self._is_whole() else None
        value, text = self.value + bytes([byte]), self.sources.text
        is_escaped = byte == ord("\\") and not self.is_escaped
        if self.kind == "endpoint":
            is_begun = any(name.startswith(value) for name in self.names)
            return replace(self, value=value, is_escaped=is_escaped) if is_begun else None
        n = len(self.value)
        places = tuple(place for place in self.places if text[place + n : place + n + 1] == value[-1:])
        return replace(self, value=value, places=places, is_escaped=is_escaped) if places else None

    def _is_whole(self) -> bool:
        """Whether the value may end here; one that the grammar lets grow no longer always may."""
        n = len(self.value)
        if self.kind == "endpoint":
            return self.value in self.names
        return n >= MAX_TEXT_CHARACTERS or any(place + n in self.sources.ends for place in self.places)


def _are_of_one_word(one: str, other: str) -> bool:
    """Digits, or letters of a script with capitals: others may part no words."""
    return (one.isdecimal() and other.isdecimal()) or (one.lower() != one.upper() and other.lower() != other.upper())
