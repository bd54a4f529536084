"""What a model answers, whatever runs it: a grade with its probabilities, an extraction as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from observer.schema import Label

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""


@dataclass(frozen=True)
class Grade:
    """The likeliest label, and how likely each is among the three."""

    label: Label
    probabilities: dict[Label, float]


@dataclass(frozen=True)
class Completion:
    """One generated answer; `tokens` leaves out the end token, `truncated` means that none came in time."""

    text: str
    tokens: tuple[int, ...]
    truncated: bool

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


def no_progress(_done: int, _total: int) -> None:
    """For callers that show none."""
