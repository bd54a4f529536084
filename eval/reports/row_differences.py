"""The rows that two models answer differently, the largest losses first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eval.answers.answering import Answers
from eval.answers.rows import Row, answer_of, extraction_of
from eval.metrics.row_counts import f1_of, is_same, parse_answer, triple_counts
from observer.prompts import exchange_of
from observer.schema import Extraction, Label

_RANK = {label: rank for rank, label in enumerate(Label)}


@dataclass(frozen=True)
class RowDifference:
    """A row answered differently. `gain`, -1 to 1: how much nearer to gold the model is than the reference.

    Grading counts steps between labels (of the two there can be); extraction takes the difference in F1 over the row's
    entities and triples with temporal together.
    """

    task: str
    id: str | None
    family: str | None
    slices: list[str]
    exchange: str
    gold: str
    reference: str
    model: str
    gain: float


def row_differences(reference: Answers, model: Answers) -> list[RowDifference]:
    """Rows with another label or another extraction; the order and case of entities and relationships do not count."""
    differences = [*_other_labels(reference, model), *_other_extractions(reference, model)]
    return sorted(differences, key=lambda difference: difference.gain)


def worst(differences: Sequence[RowDifference], n: int) -> list[RowDifference]:
    """At most `n` losses, of each task its share as long as it has some."""
    losses = [difference for difference in differences if difference.gain < 0]
    tasks = sorted({difference.task for difference in losses})
    chosen = [d for task in tasks for d in [d for d in losses if d.task == task][: n // len(tasks)]]
    chosen += [d for d in losses if d not in chosen][: n - len(chosen)]
    return sorted(chosen, key=lambda difference: difference.gain)


def _other_labels(reference: Answers, model: Answers) -> Iterator[RowDifference]:
    for row, one, other in zip(reference.grade_rows, reference.grades, model.grades, strict=True):
        if one.label != other.label:
            gold = _RANK[Label(answer_of(row))]
            steps = abs(_RANK[one.label] - gold) - abs(_RANK[other.label] - gold)
            yield _difference(row, str(one.label), str(other.label), steps / (len(Label) - 1))


def _other_extractions(reference: Answers, model: Answers) -> Iterator[RowDifference]:
    gold = [extraction_of(row) for row in reference.extract_rows]
    texts = [[completion.text for completion in answers.completions] for answers in (reference, model)]
    one_f1, other_f1 = (_row_f1(gold, answers) for answers in texts)
    rows = zip(reference.extract_rows, *texts, one_f1, other_f1, strict=True)
    for row, one, other, before, after in rows:
        if not _says_the_same(one, other):
            yield _difference(row, one, other, float(after - before))


def _row_f1(gold: Sequence[Extraction], answers: Sequence[str]) -> Any:
    """F1 of each row over its entities and triples with temporal, (n_rows,)."""
    return f1_of(triple_counts(gold, answers, "entity") + triple_counts(gold, answers, "temporal"))


def _says_the_same(one: str, other: str) -> bool:
    ours, theirs = parse_answer(one), parse_answer(other)
    return one == other or (ours is not None and theirs is not None and is_same(ours, theirs))


def _difference(row: Row, reference: str, model: str, gain: float) -> RowDifference:
    return RowDifference(
        task=row["task"],
        id=row.get("id"),
        family=row.get("family"),
        slices=list(row.get("slices") or ()),
        exchange=exchange_of(row),
        gold=answer_of(row),
        reference=reference,
        model=model,
        gain=gain,
    )
