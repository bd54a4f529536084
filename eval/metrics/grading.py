"""How good labels and their probabilities are: pure scores over gold and predicted.

The formulas work on sums of counts per row, a thousand resamples at once, which scikit-learn's do not; the tests hold
each against scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from eval.metrics.measure import Measure, intervals_of, shares
from eval.metrics.row_counts import FOUND, GOLD, f1_of, precision_of, recall_of, share_of
from eval.metrics.significance import Interval, Statistic
from observer.schema import Label

LABELS = [str(label) for label in Label]
_N = len(LABELS)
COSTS = ((0, 1, 2), (2, 0, 1), (4, 1, 0))
"""Of each mistake: gold down, predicted across, as in `Label`. What is forgotten is gone, what is kept in vain is
weeded out later; to forget what matters costs most."""
KEEP_THRESHOLDS = (0.02, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.98)
N_BINS = 10
"""Equal-width bins of the top label's probability, each with its lower edge; the last one also with 1."""


@dataclass(frozen=True)
class ClassScores:
    """One label against the rest, zero where it does not occur; `support` is its number of gold rows."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of about one probability of the top label: its mean, how often the label was right, how many they are."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class KeepPoint:
    """What keeping every row comes to whose probability of not being DISCARD is over `threshold`."""

    threshold: float
    false_keep_rate: float | None
    missed_rate: float | None


@dataclass(frozen=True)
class GradingScores:
    """`confusion` counts rows: gold down, predicted across, both in the order of `Label`.

    `macro_f1` is the mean over the labels that occur among gold or predicted. `quadratic_kappa` is None where no other
    label occurs. `mean_cost` is by COSTS, 0 to 4. `false_keep_rate` is the share of the DISCARD rows that are kept,
    `missed_rate` of the IMPORTANT rows that are discarded: here by the label, in `keep_curve` by the probability.
    `brier` is the squared distance of the probabilities from the truth, 0 to 2, and `ece` the mean distance of the
    reliability curve from the diagonal; None without probabilities. `intervals` are 95 %, by family, named as the
    fields, `LABEL.f1` for a class. `ece` has none: resampling, like chance itself, can only add to it.
    """

    n: int
    n_families: int
    accuracy: float
    macro_f1: float
    quadratic_kappa: float | None
    mean_cost: float
    false_keep_rate: float | None
    missed_rate: float | None
    brier: float | None
    ece: float | None
    per_class: dict[str, ClassScores]
    confusion: list[list[int]]
    reliability: list[ReliabilityBin] = field(default_factory=list)
    keep_curve: list[KeepPoint] = field(default_factory=list)
    intervals: dict[str, Interval] = field(default_factory=dict)


Probabilities = Sequence[Mapping[Label, float]]


def score_grading(
    gold: Sequence[str],
    predicted: Sequence[str],
    probabilities: Probabilities | None = None,
    groups: Sequence[str] | None = None,
) -> GradingScores:
    """`groups` are the rows' families; there are no intervals without. An empty mapping is no probabilities."""
    assert len(gold) == len(predicted) > 0
    probabilities = probabilities if probabilities and all(probabilities) else None
    counts = confusion_counts(gold, predicted)
    measures = grading_measures(gold, predicted, probabilities)
    values = {name: measure.value() for name, measure in measures.items()}
    curve = reliability(gold, predicted, probabilities) if probabilities else []
    table = counts.sum(0).reshape(_N, _N)
    per_class = {
        label: ClassScores(
            **{name: values[f"{label}.{name}"] or 0.0 for name in _CLASS_SCORES}, support=int(table[row].sum())
        )
        for row, label in enumerate(LABELS)
    }
    return GradingScores(
        n=len(gold),
        n_families=len(set(groups)) if groups is not None else len(gold),
        **({"brier": None} | {name: value for name, value in values.items() if "." not in name}),  # type: ignore
        ece=sum(b.count * abs(b.accuracy - b.confidence) for b in curve) / len(gold) if curve else None,
        per_class=per_class,
        confusion=table.tolist(),
        reliability=curve,
        keep_curve=keep_curve(gold, probabilities) if probabilities else [],
        intervals=intervals_of(measures, groups) if groups is not None else {},
    )


def grading_measures(
    gold: Sequence[str], predicted: Sequence[str], probabilities: Probabilities | None = None
) -> dict[str, Measure]:
    """Every figure that has an interval, by the name of its field; a class's as `LABEL.f1`."""
    counts = confusion_counts(gold, predicted)
    golds, labels = np.array(list(map(str, gold))), np.array(list(map(str, predicted)))
    measures = {
        "accuracy": Measure(shares(golds == labels), share_of),
        "macro_f1": Measure(counts, macro_f1),
        "quadratic_kappa": Measure(counts, quadratic_kappa, is_share=False),
        "mean_cost": Measure(counts, mean_cost, is_share=False),
        "false_keep_rate": Measure(shares(labels != Label.DISCARD, golds == Label.DISCARD), share_of),
        "missed_rate": Measure(shares(labels == Label.DISCARD, golds == Label.IMPORTANT), share_of),
    }
    for row, label in enumerate(LABELS):
        one_label = _class_counts(counts, row)
        measures |= {
            f"{label}.{name}": Measure(one_label, _where_it_occurs(how), trials=trials)
            for name, (how, trials) in _CLASS_SCORES.items()
        }
    if probabilities is not None:
        truth = np.eye(_N)[[LABELS.index(str(label)) for label in gold]]
        errors = ((np.array([[row[label] for label in Label] for row in probabilities]) - truth) ** 2).sum(1)
        measures["brier"] = Measure(np.stack([errors, np.ones_like(errors)], axis=1), share_of, is_share=False)
    return measures


def confusion_counts(gold: Sequence[str], predicted: Sequence[str]) -> npt.NDArray[np.int64]:
    """(n_rows, 9): a one where gold (down) and predicted (across) meet, flattened."""
    cells = [LABELS.index(str(g)) * _N + LABELS.index(str(p)) for g, p in zip(gold, predicted, strict=True)]
    return np.eye(_N * _N, dtype=np.int64)[cells]


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(…, 9) -> (…): the mean F1 of the labels that occur among gold or predicted; NaN of no rows."""
    counts = np.stack([_class_counts(confusion, row) for row in range(_N)], axis=-2)
    occurs = counts[..., 1:].sum(-1) > 0
    return share_of(np.stack([(f1_of(counts) * occurs).sum(-1), occurs.sum(-1)], axis=-1))


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """(…, 9) -> (…): Cohen's, mistakes weighted by the square of their steps (Cohen 1968); NaN of a single label."""
    table = confusion.reshape(*confusion.shape[:-1], _N, _N)
    steps = (np.arange(_N)[:, None] - np.arange(_N)) ** 2
    by_chance = table.sum(-1)[..., :, None] * table.sum(-2)[..., None, :]
    expected = (steps * by_chance).sum((-1, -2)) / np.maximum(table.sum((-1, -2)), 1)
    observed = (steps * table).sum((-1, -2))
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), np.nan)


def mean_cost(confusion: np.ndarray) -> np.ndarray:
    """(…, 9) -> (…): what a row costs on average, by COSTS."""
    return (confusion * np.ravel(COSTS)).sum(-1) / np.maximum(confusion.sum(-1), 1)


def keep_curve(gold: Sequence[str], probabilities: Probabilities) -> list[KeepPoint]:
    """Both rates at every threshold of KEEP_THRESHOLDS, for a caller that keeps by probability."""
    keep = np.array([1.0 - row[Label.DISCARD] for row in probabilities])
    labels = np.array([str(label) for label in gold])

    def share(label: Label, threshold: float, is_kept: bool) -> float | None:
        chosen = keep[labels == label] > threshold
        return float((chosen == is_kept).mean()) if len(chosen) else None

    return [KeepPoint(t, share(Label.DISCARD, t, True), share(Label.IMPORTANT, t, False)) for t in KEEP_THRESHOLDS]


def reliability(gold: Sequence[str], predicted: Sequence[str], probabilities: Probabilities) -> list[ReliabilityBin]:
    """The bins that hold rows, lowest probability first."""
    tops = np.array([p[Label(label)] for p, label in zip(probabilities, predicted, strict=True)])
    right = np.array([str(g) == str(p) for g, p in zip(gold, predicted, strict=True)])
    bins = np.minimum((tops * N_BINS).astype(int), N_BINS - 1)
    return [
        ReliabilityBin(float(tops[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
        for b in np.unique(bins)
    ]


_CLASS_SCORES = {"precision": (precision_of, FOUND), "recall": (recall_of, GOLD), "f1": (f1_of, None)}


def _where_it_occurs(score: Statistic) -> Statistic:
    """NaN for a label that is neither gold nor predicted: no resample without it may count as perfect."""
    return lambda counts: np.where(counts[..., 1] + counts[..., 2] > 0, score(counts), np.nan)


def _class_counts(confusion: np.ndarray, row: int) -> np.ndarray:
    """(…, 9) -> (…, 3): right, gold, found of one label."""
    table = confusion.reshape(*confusion.shape[:-1], _N, _N)
    return np.stack([table[..., row, row], table[..., row, :].sum(-1), table[..., :, row].sum(-1)], axis=-1)
