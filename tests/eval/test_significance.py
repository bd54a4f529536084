"""Intervals and tests against hand-computed cases, scipy, and what must hold for any data."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.measure import Measure, intervals_of, shares
from eval.metrics.row_counts import f1_of, share_of
from eval.metrics.significance import (
    Interval,
    bootstrap_interval,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    share_interval,
)

p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_the_bootstrap_of_two_groups_has_three_outcomes_in_known_shares() -> None:
    # one family all right, one all wrong: a resample has 0, 1 or 2 of the right one, with shares 1/4, 1/2, 1/4
    values, groups = shares([True, True, False, False]), ["a", "a", "b", "b"]
    assert bootstrap_interval(values, share_of, groups) == Interval(0.0, 1.0)
    assert bootstrap_interval(values, share_of, groups, level=0.4) == Interval(0.5, 0.5)


def test_the_interval_equals_the_exhaustive_bootstrap_within_its_noise() -> None:
    counts = np.array([[3, 4], [1, 4], [2, 2], [0, 3], [5, 5]])
    every = [share_of(counts[list(draw)].sum(0)) for draw in product(range(5), repeat=5)]
    low, high = np.quantile(every, [0.025, 0.975])
    found = bootstrap_interval(counts, share_of, list("abcde"), n_resamples=20_000)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_families_are_resampled_whole() -> None:
    values = shares([True, False] * 50)
    alone = bootstrap_interval(values, share_of, [str(row) for row in range(100)])
    mixed = bootstrap_interval(values, share_of, [str(row // 2) for row in range(100)])
    apart = bootstrap_interval(values, share_of, [str(row % 2) for row in range(100)])
    assert 0.15 < alone.high - alone.low < 0.25  # about 4 * sqrt(.25 / 100)
    assert mixed == Interval(0.5, 0.5)  # each family is half right
    assert apart == Interval(0.0, 1.0)


def test_an_interval_by_family_holds_the_truth_as_often_as_it_says_and_one_by_row_does_not() -> None:
    # 40 families of 5 rows that are right or wrong together, half of them right
    rng = np.random.default_rng(1)
    held = {"family": 0, "row": 0}
    for _ in range(200):
        values = shares(np.repeat(rng.random(40) < 0.5, 5))
        for name, groups in (("family", [str(n // 5) for n in range(200)]), ("row", [str(n) for n in range(200)])):
            found = bootstrap_interval(values, share_of, groups, n_resamples=200)
            held[name] += found.low <= 0.5 <= found.high
    assert 0.9 <= held["family"] / 200 <= 0.98
    assert held["row"] / 200 < 0.75


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    values, groups = shares([n % 3 == 0 for n in range(60)]), [str(n) for n in range(60)]
    one, again, other = (bootstrap_interval(values, share_of, groups, n_resamples=99, seed=s) for s in (0, 0, 1))
    assert one == again != other


def test_all_right_is_not_certain() -> None:
    # Clopper-Pearson of n of n: the lower end is (alpha / 2) ** (1 / n)
    right = share_interval(shares([True] * 8), share_of, list("aabbccdd"))
    wrong = share_interval(shares([False] * 3), share_of, list("abc"))
    assert (right.low, right.high) == (pytest.approx(0.025 ** (1 / 4)), 1.0)
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 3)))


def test_groups_without_anything_to_count_give_no_certainty() -> None:
    values = shares([True, True, True], [True, False, False])
    assert share_interval(values, share_of, list("abc")).low == pytest.approx(0.025)
    assert share_interval(np.zeros((2, 3)), f1_of, list("ab")) == Interval(0.0, 1.0)


def test_resamples_without_a_value_are_left_out() -> None:
    values = shares([True, False, False], [True, False, False])
    assert bootstrap_interval(values, share_of, list("abc")) == Interval(1.0, 1.0)


def test_a_measure_of_some_rows_is_that_of_these_rows_alone() -> None:
    whole = Measure(shares([True, False, True, True, False, True]), share_of)
    part = whole.of(np.array([True, True, False, True, True, False]))
    assert part.counts.tolist() == shares([True, False, True, False]).tolist() and part.value() == 0.5
    nothing = Measure(shares([True], [False]), share_of)
    assert (nothing.value(), intervals_of({"rate": nothing}, ["a"])) == (None, {})
    assert whole.of(np.zeros(6, dtype=bool)).value() is None


def test_a_difference_in_every_group_has_the_smallest_p() -> None:
    a, b = shares([False] * 10), shares([True] * 10)
    found = paired_bootstrap(a, b, share_of, [str(n) for n in range(10)], n_resamples=999)
    assert (found.value, found.interval, found.p_value) == (1.0, Interval(1.0, 1.0), pytest.approx(2 / 1000))


def test_the_paired_p_is_twice_the_share_beyond_zero() -> None:
    # b gains on one row of two families, loses on the other: the resampled difference is -1, 0 or 1 (1/4, 1/2, 1/4)
    found = paired_bootstrap(shares([True, False]), shares([False, True]), share_of, ["a", "b"])
    assert (found.value, found.p_value) == (0.0, 1.0)
    # of three rows one is gained: no gain in (2/3)^3 of the resamples
    found = paired_bootstrap(shares([True, False, True]), shares([True] * 3), share_of, list("abc"), n_resamples=20_000)
    assert found.p_value == pytest.approx(2 * (2 / 3) ** 3, abs=0.02)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_by_hand(pairs: list[tuple[bool, bool]]) -> None:
    n, k = sum(a != b for a, b in pairs), sum(a and not b for a, b in pairs)
    tail = sum(math.comb(n, i) for i in range(min(k, n - k) + 1)) / 2**n
    assert mcnemar_exact([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(min(1.0, 2 * tail))


def test_holm_steps_down() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_lists)
def test_holm_keeps_order_and_lies_between_the_p_and_bonferronis(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for (p, q), (other_p, other_q) in product(zip(p_values, corrected, strict=True), repeat=2):
        assert p <= q <= min(1.0, p * len(p_values)) + 1e-12
        assert p > other_p or q <= other_q
