"""Smallest, median and largest of what was measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
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
