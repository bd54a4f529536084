"""Where names stand in an exchange: every span of a name in the caller's own text, and who wrote it.

Compared are NFC, case-folded letters with runs of blanks as one. A name stands by itself: letters or digits on either
side make another word of it, except in scripts that part no words or hang endings on them.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import regex

from observer.observation import Exchange, Span

Speaker = Literal["user", "assistant", "both"]
_CONTROL = regex.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]")
_CLUSTER = regex.compile(r"\s+|\X")
_JOINED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[\p{{L}}\p{{M}}\p{{N}}_--[{_JOINED}]]", regex.V1)


@dataclass(frozen=True)
class Message:
    """One message as the caller gave it. `place` is as in `Span.message`; in `hidden` ranges nothing is found."""

    place: str
    role: Literal["user", "assistant"]
    text: str
    hidden: Sequence[tuple[int, int]] = ()

    def _is_hidden(self, begin: int, stop: int) -> bool:
        """Whether some of it is hidden: of the ranges that begin before its end, whether one ends behind its start."""
        place = bisect_left(self._hidden_until, stop, key=lambda entry: entry[0])
        return place > 0 and self._hidden_until[place - 1][1] > begin

    @cached_property
    def _hidden_until(self) -> list[tuple[int, int]]:
        """The starts of hidden ranges in order, each with the furthest end so far."""
        furthest = accumulate((end for _, end in sorted(self.hidden)), max)
        return list(zip(sorted(start for start, _ in self.hidden), furthest, strict=True))

    @cached_property
    def _folded(self) -> tuple[str, list[tuple[int, int]]]:
        """The text as it is compared, and for each of its characters the range it comes from."""
        return _fold_with_ranges(self.text)

    def spans(self, name: str) -> list[Span]:
        """All places of the name, left to right, none within another."""
        text, ranges = self._folded
        found = []
        for start, end in _occurrences(fold(name), text):
            begin, stop = ranges[start][0], ranges[end - 1][1]
            if not self._is_hidden(begin, stop):
                found.append(Span(message=self.place, start=begin, end=stop))
        return found


def messages_of(exchange: Exchange, hidden: Mapping[str, Sequence[tuple[int, int]]] | None = None) -> list[Message]:
    """All messages, the context first; `hidden` are ranges by place."""
    hidden = hidden or {}

    def message(place: str, role: Literal["user", "assistant"], text: str) -> Message:
        return Message(place, role, text, hidden.get(place, ()))

    earlier = [message(f"context[{n}]", turn.role, turn.content) for n, turn in enumerate(exchange.context)]
    last = message("user", "user", exchange.user_message), message("assistant", "assistant", exchange.assistant_message)
    return [*earlier, *last]


def find_name(name: str, messages: Sequence[Message]) -> list[Span]:
    """Every span of a name."""
    return [span for message in messages for span in message.spans(name)]


def stated_by(evidence: Iterable[str], messages: Sequence[Message]) -> Speaker | None:
    """Who wrote all of the evidence: in the last exchange, else with the turns before it.

    `both` when each did, or only the two together; None when some of it is nowhere, or there is none.
    """
    pieces = list(evidence)
    last = [message for message in messages if not message.place.startswith("context")]
    for part in (last, messages) if pieces else ():
        written = [{message.role for message in part if message.spans(piece)} for piece in pieces]
        if all(written):
            alone = set.intersection(*written)
            return next(iter(alone)) if len(alone) == 1 else "both"
    return None


def fold(text: str) -> str:
    """The text as it is compared."""
    return _fold_with_ranges(text)[0].strip()


def _fold_with_ranges(text: str) -> tuple[str, list[tuple[int, int]]]:
    letters: list[str] = []
    ranges: list[tuple[int, int]] = []
    for match in _CLUSTER.finditer(text):
        folded = " " if match.group().isspace() else _CONTROL.sub("", _nfc_casefold(match.group()))
        letters += folded
        ranges += [match.span()] * len(folded)
    return "".join(letters), ranges


def _nfc_casefold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _occurrences(name: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(name) if name else -1
    while start >= 0:
        end = start + len(name)
        is_whole = not _joins(text[start - 1 : start], name[0]) and not _joins(name[-1], text[end : end + 1])
        if is_whole:
            yield start, end
        start = text.find(name, end if is_whole else start + 1)


def _joins(left: str, right: str) -> bool:
    """Whether two neighbouring characters are of one word."""
    return bool(left and right and _WORD.match(left) and _WORD.match(right))
