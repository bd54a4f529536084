"""Which file to ship: the smallest that is shown not to lose more than a margin against the reference.

Two things are kept apart: "no evidence of harm" (nothing significant was found, which few rows never do) and
"evidence of no harm beyond the margin" (the interval of the difference excludes a larger loss). Only the second
recommends a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.reports.comparison import Test

MARGIN = 0.03
"""The loss of accuracy, and of F1, that is taken for harm: about one answer in thirty."""
MEASURES = {"accuracy": "label accuracy", "triple_f1_temporal": "triple F1 with temporal"}
"""What the rule looks at, a measure for each task, and how it is called."""
SAME_SIZE = 0.01
"""Sizes that differ by less are a tie (an importance matrix adds some bytes of keys)."""


class Verdict(StrEnum):
    REFERENCE = "reference"
    NO_HARM = "no harm beyond the margin"
    UNCLEAR = "no evidence of harm"
    WORSE = "worse"


@dataclass(frozen=True)
class Choice:
    """One file as the rule sees it; `tests` are against the reference, none for itself."""

    name: str
    size_bytes: int
    verdict: Verdict
    tests: Sequence[Test]
    mean_kld: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """`sentence` says what to ship, `reasons` why and how sure, `smaller` why no smaller file; a line each."""

    name: str
    sentence: str
    reasons: list[str]
    smaller: list[str]


def judge(tests: Sequence[Test], n_families: int, margin: float = MARGIN) -> Verdict:
    """What the tests against the reference say of a file, on rows of so many families (of the task with fewer)."""
    decisive = [test for test in tests if test.measure in MEASURES]
    if any(test.verdict == "worse" for test in decisive):
        return Verdict.WORSE
    is_bounded = n_families >= least_families(margin) and all(test.interval.low >= -margin for test in decisive)
    return Verdict.NO_HARM if decisive and is_bounded else Verdict.UNCLEAR


def least_families(margin: float = MARGIN) -> int:
    """How many unlike rows can exclude a loss of `margin` at all.

    A bootstrap of rows that all agree gives an interval of one point, however few they are. A file that spoils a share
    `margin` of rows spoils none of n with a chance of (1 - margin)^n, which is to be at most 2.5 %.
    """
    return math.ceil(math.log(0.025) / math.log(1 - margin))


def recommend(choices: Sequence[Choice], n_families: int, margin: float = MARGIN) -> Recommendation:
    """The smallest file without harm; of those of its size the one nearest to the reference by mean KL divergence.

    The reference, which comes first, is always one of them.
    """
    reference, *_ = choices
    sound = [choice for choice in choices if choice.verdict in (Verdict.REFERENCE, Verdict.NO_HARM)]
    smallest = min(choice.size_bytes for choice in sound)
    tied = [choice for choice in sound if choice.size_bytes <= smallest * (1 + SAME_SIZE)]
    best = min(tied, key=lambda choice: (_divergence(choice), choice.size_bytes, choice.name))
    others = [choice for choice in tied if choice is not best]
    reasons = [_tie_line(best, others)] if others else []
    reasons += [_test_line(test) for test in best.tests if test.measure in MEASURES]
    if n_families < least_families(margin):
        reasons.append(
            f"{n_families} unlike rows (families) are too few to exclude a loss of {_points(margin)} even where every "
            f"answer agrees: at least {least_families(margin)} of each task are needed."
        )
    reasons.append(f"{len(choices) - 1} files were tried against {reference.name}.")
    if best is not reference:
        reasons[-1] += (
            f" One that truly loses {_points(margin)} passes this rule with a chance of about 2.5 % at most; the "
            "smallest of several that passed is favoured by luck, so check it on rows of your own."
        )
    smaller = [choice for choice in choices if choice.size_bytes < smallest and choice not in sound]
    smaller.sort(key=lambda choice: -choice.size_bytes)
    lines = [_smaller_line(choice, margin) for choice in smaller]
    return Recommendation(best.name, _sentence(best, reference, margin), reasons, lines)


def rule_text(margin: float = MARGIN) -> str:
    """The rule in words, for the reports."""
    return (
        f"The smallest file that is not significantly worse than the reference in {' and '.join(MEASURES.values())} "
        "(McNemar's exact test and a paired bootstrap by family, p corrected by Holm over all tests of all files, "
        f"at least 0.05) and whose 95 % intervals of the difference do not reach below -{_points(margin)}, over at "
        f"least {least_families(margin)} families of rows of each task. Files within {SAME_SIZE:.0%} of its size are "
        "a tie, which the lowest mean KL divergence wins."
    )


def rows_needed_ratio(test: Test, margin: float) -> float | None:
    """How many times the rows would bring the interval above -margin if the difference stayed; None if none would.

    An interval's half-width shrinks with the square root of the number of rows.
    """
    room, half_width = test.difference + margin, test.difference - test.interval.low
    return (half_width / room) ** 2 if room > 0 else None


def _sentence(best: Choice, reference: Choice, margin: float) -> str:
    if best.verdict == Verdict.REFERENCE:
        return (
            f"Ship {best.name} ({best.size_bytes / 1e6:,.1f} MB), the reference itself: no smaller file is shown to "
            f"lose less than {_points(margin)} on these rows."
        )
    return (
        f"Ship {best.name} ({best.size_bytes / 1e6:,.1f} MB, {100 * best.size_bytes / reference.size_bytes:.0f} % of "
        f"{reference.name}'s size). On these rows a loss of more than {_points(margin)} against it is excluded in "
        f"{' and '.join(MEASURES[test.measure] for test in best.tests if test.measure in MEASURES)} (95 % intervals)."
    )


def _test_line(test: Test) -> str:
    low, high = (100 * end for end in (test.interval.low, test.interval.high))
    return (
        f"{MEASURES[test.measure]}: {100 * test.model:.1f} against {100 * test.reference:.1f}, a difference of "
        f"{100 * test.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, corrected p "
        f"{test.p_text})."
    )


def _smaller_line(choice: Choice, margin: float) -> str:
    """Why a smaller file is not the one."""
    size = f"{choice.name} ({choice.size_bytes / 1e6:,.1f} MB)"
    decisive = [test for test in choice.tests if test.measure in MEASURES]
    if choice.verdict == Verdict.WORSE:
        worse = [test for test in decisive if test.verdict == "worse"]
        losses = [f"{MEASURES[t.measure]} by {-100 * t.difference:.1f} points (p {t.p_text})" for t in worse]
        return f"{size} is worse: {', '.join(losses)}."
    open_tests = [test for test in decisive if test.interval.low < -margin]
    if not open_tests:
        return f"{size} shows no evidence of harm, which is not evidence of no harm on so few rows."
    reaches = [f"{MEASURES[t.measure]} may lose up to {-100 * t.interval.low:.1f} points" for t in open_tests]
    ratios = [rows_needed_ratio(test, margin) for test in open_tests]
    known = [ratio for ratio in ratios if ratio is not None]
    hint = (
        f" About {max(known):.1f} times the rows would settle it, if the differences stay." if known == ratios else ""
    )
    return f"{size} shows no evidence of harm, which is not evidence of no harm: {', '.join(reaches)}.{hint}"


def _tie_line(best: Choice, others: Sequence[Choice]) -> str:
    names = ", ".join(choice.name for choice in others)
    if best.mean_kld is None:
        return f"{names} passed too and weigh the same; no divergence was measured, so the smaller one won."
    return f"{names} passed too at the same size; {best.name} is nearer to the reference (mean KL {best.mean_kld:.4f})."


def _divergence(choice: Choice) -> float:
    if choice.verdict == Verdict.REFERENCE:
        return 0.0
    return math.inf if choice.mean_kld is None else choice.mean_kld


def _points(margin: float) -> str:
    return f"{100 * margin:g} points"
