"""How sure a figure is: intervals and tests that know that rows of one family are not independent.

Pure functions over counts per row. scipy's bootstrap resamples rows one by one and neither groups nor sums them;
statsmodels has McNemar and Holm, each shorter here than the dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

Values = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Statistic = Callable[[np.ndarray], np.ndarray]
"""Sums over rows (…, k) -> figures (…); NaN where it is not defined, such as a share of nothing."""

N_RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """`value` is b - a; `p_value` is two-sided, for a difference of zero."""

    value: float
    interval: Interval
    p_value: float


def bootstrap_interval(
    values: Values,
    statistic: Statistic,
    groups: Sequence[str],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of `statistic` over `values` (n_rows, k); whole groups are drawn, with replacement.

    Where all groups agree it is a single point, which says that they do, not that others would: see `share_interval`.
    """
    sums = _group_sums(values, groups)
    return _percentiles(statistic(_weights(len(sums), n_resamples, seed) @ sums), level)


def share_interval(
    values: Values,
    statistic: Statistic,
    groups: Sequence[str],
    trials: int | None = None,
) -> Interval:
    """`bootstrap_interval` of a figure within 0 and 1, which is not a single point where it is exactly 0 or 1.

    No resample can doubt these: they get the exact (Clopper-Pearson) interval of as many trials as there are groups
    with anything to count, in the column `trials` or in any, none or all of them right.
    """
    value = float(statistic(np.asarray(values).sum(0)))
    if value not in (0.0, 1.0):
        return bootstrap_interval(values, statistic, groups)
    counted = _group_sums(values, groups)[:, slice(None) if trials is None else [trials]]
    n_groups = int(counted.any(axis=1).sum())
    if n_groups == 0:
        return Interval(0.0, 1.0)
    exact = binomtest(round(value * n_groups), n_groups).proportion_ci(confidence_level=LEVEL, method="exact")
    return Interval(float(exact.low), float(exact.high))


def paired_bootstrap(
    a_values: Values,
    b_values: Values,
    statistic: Statistic,
    groups: Sequence[str],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """`statistic` of b minus that of a, both (n_rows, k) over the same rows, on the same resamples of groups.

    p is twice the share of resamples on the other side of zero, one added to each count: at least 2 / (n + 1), and 1
    where a and b are equal.
    """
    assert np.shape(a_values) == np.shape(b_values)
    weights = _weights(len(set(groups)), n_resamples, seed)
    a_figures, b_figures = (statistic(weights @ _group_sums(values, groups)) for values in (a_values, b_values))
    figures = b_figures - a_figures
    figures = figures[~np.isnan(figures)]
    value = float(statistic(np.asarray(b_values).sum(0)) - statistic(np.asarray(a_values).sum(0)))
    fewest = min(int((figures <= 0).sum()), int((figures >= 0).sum()))
    p_value = min(1.0, 2 * (fewest + 1) / (len(figures) + 1))
    return Difference(value, _percentiles(figures, level), p_value)


def mcnemar_exact(a_right: Sequence[bool] | np.ndarray, b_right: Sequence[bool] | np.ndarray) -> float:
    """Two-sided p that a and b are right equally often: the binomial test of the rows on which only one is."""
    a, b = np.asarray(a_right, dtype=bool), np.asarray(b_right, dtype=bool)
    assert a.shape == b.shape
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down procedure, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _group_sums(values: Values, groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """(n_groups, k), in an order that does not depend on the rows'."""
    values = np.asarray(values, dtype=np.float64)
    assert values.ndim == 2 and len(values) == len(groups) > 0
    names, codes = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def _weights(n_groups: int, n_resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each resample (down) draws each group (across)."""
    drawn = np.random.default_rng(seed).integers(n_groups, size=(n_resamples, n_groups))
    drawn += np.arange(n_resamples)[:, None] * n_groups
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_groups)
    return counts.reshape(n_resamples, n_groups).astype(np.float64)


def _percentiles(figures: np.ndarray, level: float) -> Interval:
    figures = figures[~np.isnan(figures)]
    if len(figures) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
