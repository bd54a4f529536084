"""Shortcut probes: how well the label is told without reading, by words alone or by lengths alone.

A probe that is as good on families it never saw as under random folds has found a shortcut that is no wording.
scikit-learn is imported when a probe runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from observer.data.audit.rows import TRAIN, VAL, AuditRow
from observer.data.audit.similarity import words_of
from observer.prompts import Task

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

SEED = 42
N_FOLDS = 5
LENGTH_LIMIT = 0.45
ClassWeight = Literal["balanced"] | None
Folds = list[tuple[Sequence[int], Sequence[int]]]
"""(rows to learn from, rows to predict)."""


@dataclass(frozen=True)
class Probe:
    """Macro-F1 of one probe: over random folds, over folds of whole families, and from train to val; None: not
    enough rows of each label, or families, to tell."""

    name: str
    random: float | None
    grouped: float | None
    train_to_val: float | None


@dataclass(frozen=True)
class Groups:
    """How families fall into groups that share none; a large group makes the grouped folds uneven."""

    n: int
    largest_share: float


def words_pipeline(class_weight: ClassWeight) -> Pipeline:
    """TF-IDF of words and word pairs, then logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    # On so many sparse columns newton-cg takes a tenth of lbfgs's time to the same optimum.
    return make_pipeline(words, LogisticRegression(solver="newton-cg", C=10.0, class_weight=class_weight))


def lengths_of(row: AuditRow) -> list[int]:
    """Characters and words of the user turn and of the reply, and the number of turns."""
    return [*_sizes(row.user_turn), *_sizes(row.reply), len(row.turns)]


def _sizes(text: str) -> list[int]:
    return [len(text), len(words_of(text)) if text else 0]


def run_probes(rows: Sequence[AuditRow]) -> tuple[list[Probe], Groups]:
    """Both probes on the grading rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    graded = [row for row in rows if row.task == Task.GRADE]
    labels = [row.completion for row in graded]
    groups = family_groups([row.families for row in graded])
    random, grouped = _folds(StratifiedKFold, labels, None), _folds(StratifiedGroupKFold, labels, groups)
    every = random, grouped, _train_to_val(graded)
    by_lengths = HistGradientBoostingClassifier(
        max_iter=40, max_leaf_nodes=8, class_weight="balanced", random_state=SEED
    )
    probes = [
        Probe(name, *(_macro_f1(model, inputs, labels, folds) for folds in every))
        for name, model, inputs in (
            ("bag of words", words_pipeline("balanced"), [row.exchange for row in graded]),
            ("lengths only", by_lengths, [lengths_of(row) for row in graded]),
        )
    ]
    counts = Counter(groups)
    return probes, Groups(len(counts), max(counts.values(), default=0) / max(1, len(graded)))


def family_groups(families: Sequence[Sequence[str]]) -> list[int]:
    """A group number for each row: rows that share a family, directly or through others, share a group.

    A row without a family is a group of its own.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (up := parent.setdefault(name, name)) != name:
            parent[name] = parent[up]
            name = up
        return name

    keys = [list(names) or [f"row {i}"] for i, names in enumerate(families)]
    for names in keys:
        for name in names[1:]:
            parent[root(name)] = root(names[0])
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(names[0]), len(numbers)) for names in keys]


def _folds(kind: Any, labels: Sequence[str], groups: Sequence[int] | None) -> Folds:
    """None where some label has fewer rows than there are folds, or the groups are fewer."""
    if min(Counter(labels).values(), default=0) < N_FOLDS or (groups is not None and len(set(groups)) < N_FOLDS):
        return []
    folds = kind(N_FOLDS, shuffle=True, random_state=SEED)
    return [(known.tolist(), asked.tolist()) for known, asked in folds.split(labels, labels, groups)]


def _train_to_val(rows: Sequence[AuditRow]) -> Folds:
    known, asked = ([i for i, row in enumerate(rows) if row.part == part] for part in (TRAIN, VAL))
    return [(known, asked)] if known and asked else []


def _macro_f1(model: Any, inputs: Sequence[Any], labels: Sequence[str], folds: Folds) -> float | None:
    """Of the predictions of all folds together, so that a fold without some label does no harm."""
    from sklearn.metrics import f1_score

    gold: list[str] = []
    predicted: list[str] = []
    for known, asked in folds:
        taught = [labels[i] for i in known]
        if len(set(taught)) < 2 or not asked:
            return None
        model.fit([inputs[i] for i in known], taught)
        predicted += [str(label) for label in model.predict([inputs[i] for i in asked])]
        gold += [labels[i] for i in asked]
    return float(f1_score(gold, predicted, average="macro")) if folds else None
