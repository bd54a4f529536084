"""What grading is worth beating: the most frequent label, and a linear probe on words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline

from observer.data.audit.probes import ClassWeight, words_pipeline

_SEED = 42
_FOLDS = 3


def majority_class(train_labels: Sequence[str], n: int) -> list[str]:
    """The most frequent train label, `n` times."""
    return [Counter(train_labels).most_common(1)[0][0]] * n


@lru_cache(maxsize=1)  # the quantizations of one run ask the same
def tfidf_probe(train_texts: tuple[str, ...], train_labels: tuple[str, ...], texts: tuple[str, ...]) -> list[str]:
    """TF-IDF of words and word pairs, then logistic regression.

    Classes are weighted or not, whichever has the better macro-F1 in cross-validation on train.
    With fewer rows of some label than folds there is nothing to compare, and they are weighted.
    """
    labels = list(train_labels)
    if len(set(labels)) == 1:
        return majority_class(labels, len(texts))
    probe = words_pipeline("balanced")
    if min(Counter(labels).values()) >= _FOLDS:
        candidates: list[ClassWeight] = ["balanced", None]
        probe = max((words_pipeline(weight) for weight in candidates), key=lambda p: _macro_f1(p, train_texts, labels))
    return [str(label) for label in probe.fit(train_texts, labels).predict(texts)]


def _macro_f1(probe: Pipeline, texts: Sequence[str], labels: Sequence[str]) -> float:
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
    return float(cross_val_score(probe, list(texts), list(labels), cv=folds, scoring="f1_macro").mean())
