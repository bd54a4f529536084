"""A figure as counts per row: the same numbers give its value, its interval, and both of any part of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from eval.metrics.significance import Interval, Statistic, Values, bootstrap_interval, share_interval
from observer.prompts import Task

MAIN_MEASURES: dict[Task, tuple[str, ...]] = {
    Task.GRADE: ("accuracy", "macro_f1"),
    Task.EXTRACT: ("entity_f1", "triple_f1_temporal"),
}
"""What models are compared by, and what is shown of every part of the rows."""


@dataclass(frozen=True)
class Measure:
    """`counts` (n_rows, k) and what their sums over rows give.

    `is_share`: within 0 and 1; `trials`: the column that it is a share of, if not any: see `share_interval`.
    """

    counts: Values
    statistic: Statistic
    is_share: bool = True
    trials: int | None = None

    def of(self, chosen: npt.NDArray[np.bool_]) -> Measure:
        """That of some rows; `chosen` (n_rows) says which."""
        return replace(self, counts=self.counts[chosen])

    def value(self) -> float | None:
        """None where it is not defined, such as a share of nothing."""
        value = float(self.statistic(np.asarray(self.counts).sum(0))) if len(self.counts) else float("nan")
        return None if np.isnan(value) else value

    def interval(self, groups: Sequence[str]) -> Interval | None:
        """95 %, by resampling `groups` (n_rows); None where the value is."""
        if self.value() is None:
            return None
        if not self.is_share:
            return bootstrap_interval(self.counts, self.statistic, groups)
        return share_interval(self.counts, self.statistic, groups, self.trials)


def shares(right: Sequence[bool] | np.ndarray, counted: Sequence[bool] | np.ndarray | None = None) -> npt.NDArray:
    """(n_rows, 2) for `row_counts.share_of`: right, and counted (all unless given)."""
    right = np.asarray(right, dtype=np.int64)
    counted = np.ones_like(right) if counted is None else np.asarray(counted, dtype=np.int64)
    return np.stack([right * counted, counted], axis=1)


def intervals_of(measures: Mapping[str, Measure], groups: Sequence[str]) -> dict[str, Interval]:
    """The interval of each measure that has one."""
    found = {name: measure.interval(groups) for name, measure in measures.items()}
    return {name: interval for name, interval in found.items() if interval is not None}
