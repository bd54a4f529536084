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
    """One generated answer; `tokens` leaves out the end token, `truncated` means that none came in time.

    `logprobs` are the natural log-probabilities of `tokens` under the model's own distribution, before the grammar;
    None where they were not asked for or are unknown. A backend that knows no token ids leaves `tokens` empty.
    """

    text: str
    tokens: tuple[int, ...]
    truncated: bool
    logprobs: tuple[float, ...] | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


def no_progress(_done: int, _total: int) -> None:
    """For callers that show none."""
