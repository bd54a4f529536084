"""Is a model better than another? Paired tests over the same rows; no files, no models.

Right and wrong labels are tested by McNemar's exact test, F1 by a bootstrap of row pairs that resamples families.
Holm's correction runs over all tests of all comparisons made together. Which rows differ is `row_differences`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from eval.answers.answering import Answers
from eval.answers.origin import ModelInfo
from eval.answers.rows import Row, answer_of, families_of, of_task
from eval.metrics.measure import MAIN_MEASURES, Measure
from eval.metrics.significance import Interval, holm, mcnemar_exact, paired_bootstrap
from eval.reports.row_differences import RowDifference, row_differences
from eval.reports.scoring import measures_of
from observer.errors import ObserverError
from observer.prompts import Task, exchange_of

Verdict = Literal["better", "worse", "no evidence"]

ALPHA = 0.05
N_RESAMPLES = 10_000
"""A bootstrap's p is at least 2 / (N_RESAMPLES + 1), and Holm multiplies it by the number of tests."""
COMPARED = {measure: task for task, measures in MAIN_MEASURES.items() for measure in measures}


@dataclass(frozen=True)
class Test:
    """One measure of both models. `difference` is model - reference; its interval is bootstrapped by family.

    `corrected_p` is Holm's; a verdict on the model other than "no evidence" needs it below ALPHA.
    """

    measure: str
    method: Literal["mcnemar_exact", "paired_bootstrap"]
    reference: float
    model: float
    difference: float
    interval: Interval
    p_value: float
    corrected_p: float
    verdict: Verdict

    @property
    def p_text(self) -> str:
        return f"{self.corrected_p:.3f}" if self.corrected_p >= 0.001 else "<0.001"


@dataclass(frozen=True)
class Comparison:
    """A model against the reference on the same rows; `differences` begin with the largest loss."""

    reference: ModelInfo
    model: ModelInfo
    split: str
    n_grade: int
    n_extract: int
    tests: list[Test]
    differences: list[RowDifference]

    def to_json(self) -> dict[str, Any]:
        """All but the differing rows, which are counted."""
        value = asdict(replace(self, differences=[]))
        return value | {"differences": len(self.differences)}


def compare_many(reference: Answers, others: Sequence[Answers], *, n_resamples: int = N_RESAMPLES) -> list[Comparison]:
    """Every other model against the reference, corrected together.

    Raises ObserverError when the answers are to other rows than the reference's.
    """
    for other in others:
        check_rows(other, [*reference.grade_rows, *reference.extract_rows], reference.split)
    families = {Task.GRADE: families_of(reference.grade_rows), Task.EXTRACT: families_of(reference.extract_rows)}
    ours, tests = measures_of(reference), list[list[Test]]()
    for theirs in map(measures_of, others):
        names = [name for name in COMPARED if name in ours]
        tests.append([_test(n, ours[n], theirs[n], families[COMPARED[n]], n_resamples) for n in names])
    corrected = iter(holm([test.p_value for group in tests for test in group]))
    return [
        Comparison(
            reference=reference.model,
            model=other.model,
            split=reference.split,
            n_grade=len(reference.grades),
            n_extract=len(reference.completions),
            tests=[_judge(test, next(corrected)) for test in group],
            differences=row_differences(reference, other),
        )
        for other, group in zip(others, tests, strict=True)
    ]


def check_rows(answers: Answers, rows: Sequence[Row], split: str) -> None:
    """Raise ObserverError unless these are answers to `rows` of `split`: the exchanges, their order and their gold."""
    answered = _asked([*answers.grade_rows, *answers.extract_rows])
    wanted = _asked(rows)
    if answered != wanted:
        n_shared = len(set(answered) & set(wanted))
        raise ObserverError(
            f"{answers.model.path}: answers {len(answered):,} rows of {answers.split}; {n_shared:,} of them are among "
            f"the {len(wanted):,} rows of {split} to compare on; take answers to the same split with the same --limit"
        )


def _test(name: str, reference: Measure, model: Measure, groups: Sequence[str], n_resamples: int) -> Test:
    """Not yet corrected."""
    found = paired_bootstrap(reference.counts, model.counts, model.statistic, groups, n_resamples=n_resamples)
    is_label = name == "accuracy"
    p_value = mcnemar_exact(reference.counts[:, 0], model.counts[:, 0]) if is_label else found.p_value
    return Test(
        measure=name,
        method="mcnemar_exact" if is_label else "paired_bootstrap",
        reference=reference.value() or 0.0,
        model=model.value() or 0.0,
        difference=found.value,
        interval=found.interval,
        p_value=p_value,
        corrected_p=p_value,
        verdict="no evidence",
    )


def _judge(test: Test, corrected_p: float) -> Test:
    verdict: Verdict = "no evidence"
    if corrected_p < ALPHA and test.difference:
        verdict = "better" if test.difference > 0 else "worse"
    return replace(test, corrected_p=corrected_p, verdict=verdict)


def _asked(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """What was asked and what is right, grading first."""
    return [(str(task), exchange_of(row), answer_of(row)) for task in Task for row in of_task(rows, task)]
