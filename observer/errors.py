"""The one exception a user can fix: place, what was found, what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

HIDDEN_CHARACTERS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
"""Inside [] of a pattern: what moves a cursor, colours or turns text round, but for tab and newline."""
_HIDDEN = re.compile(f"[{HIDDEN_CHARACTERS}]")


class ObserverError(Exception):
    """A fault in what the user gave us; its text is the whole message, without a traceback."""


class RowsError(ObserverError):
    """Some rows of a call can have no answer, the others could; `faults` has the reason by the row's index.

    `too_long` are those of them for which a shorter text would do; `answers` are the other rows', where they are known.
    """

    def __init__(
        self, faults: Mapping[int, str], *, too_long: Set[int] = frozenset(), answers: Mapping[int, Any] | None = None
    ) -> None:
        super().__init__(_listed([f"row {index}: {fault}" for index, fault in sorted(faults.items())], 50))
        self.faults, self.too_long, self.answers = dict(faults), too_long, dict(answers or {})


def raise_all(faults: Sequence[str], limit: int = 50) -> None:
    """Raise one ObserverError listing every fault (a line each), or return when there are none."""
    if faults:
        raise ObserverError(_listed(faults, limit))


def _listed(faults: Sequence[str], limit: int) -> str:
    shown = list(faults[:limit])
    if len(faults) > limit:
        shown.append(f"… and {len(faults) - limit} more faults")
    return "\n".join(shown)


def printable(text: str) -> str:
    """Lines for a terminal: what would move its cursor, colour it or turn text round is spelled as in Python."""
    return _HIDDEN.sub(lambda match: ascii(match.group())[1:-1], text)
