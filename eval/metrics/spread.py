"""Smallest, median and largest of what was measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of the rounds."""

    min: float
    median: float
    max: float

    def show(self, digits: int = 0) -> str:
        return " / ".join(f"{value:,.{digits}f}" for value in (self.min, self.median, self.max))


def spread(values: Iterable[float]) -> Spread | None:
    """None of no values."""
    values = list(values)
    return Spread(min(values), statistics.median(values), max(values)) if values else None


def ratios(values: Mapping[int, float], reference: Mapping[int, float]) -> Spread | None:
    """By number of the round: a pair of one round, in which the machine was slow or quick for both."""
    return spread(value / reference[number] for number, value in values.items() if reference.get(number))
