"""From answers to a report: every score of the whole, of each hard case and of what train never shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.answers.answering import Answers
from eval.answers.rows import Row, answer_of, extraction_of, families_of, names_in, of_task
from eval.metrics.extraction import (
    ExtractionScores,
    ValidityScores,
    extraction_measures,
    score_extraction,
    score_validity,
)
from eval.metrics.grading import GradingScores, grading_measures, score_grading
from eval.metrics.measure import MAIN_MEASURES, Measure, intervals_of
from eval.metrics.significance import Interval
from eval.reports.evaluation_report import GroupScores, Report
from observer.prompts import Task, exchange_of
from observer.schema import Extraction


def score(answers: Answers, train_rows: Sequence[Row] = (), command: str | None = None) -> Report:
    """Score each task that has answers; `train_rows` teach the baselines, `command` says how to do it again."""
    rates = {str(Task.GRADE): len(answers.grades), str(Task.EXTRACT): len(answers.completions)}
    measures = measures_of(answers)
    return Report(
        model=answers.model,
        split=answers.split,
        date=answers.date,
        command=command,
        machine=answers.machine,
        environment=answers.environment,
        grading=_grading(answers) if answers.grades else None,
        baselines=baselines(answers.grade_rows, of_task(train_rows, Task.GRADE)),
        extraction=_extraction(answers) if answers.completions else None,
        unconstrained=_unconstrained(answers) if answers.unconstrained else None,
        n_truncated=sum(completion.truncated for completion in answers.completions),
        examples_per_s={task: n / answers.seconds[task] for task, n in rates.items() if n},
        slices=_groups(answers, "slices", measures),
        unseen=_groups(answers, "unseen", measures),
        origins=_groups(answers, "origin", measures),
        unfinished=answers.unfinished,
    )


def baselines(rows: Sequence[Row], train_rows: Sequence[Row]) -> dict[str, GradingScores]:
    """Scores of the majority class and the TF-IDF probe on grading rows; none without rows to learn from."""
    from eval.metrics.baselines import majority_class, tfidf_probe

    if not rows or not train_rows:
        return {}
    gold, train_labels = ([answer_of(row) for row in part] for part in (rows, train_rows))
    texts, train_texts = (tuple(exchange_of(row) for row in part) for part in (rows, train_rows))
    predicted = {
        "majority": majority_class(train_labels, len(gold)),
        "tfidf": tfidf_probe(train_texts, tuple(train_labels), texts),
    }
    return {name: score_grading(gold, labels, groups=families_of(rows)) for name, labels in predicted.items()}


def measures_of(answers: Answers) -> dict[str, Measure]:
    """Every figure that needs no probabilities, of the tasks that have answers."""
    measures: dict[str, Measure] = {}
    if answers.grades:
        gold = [answer_of(row) for row in answers.grade_rows]
        measures |= grading_measures(gold, [grade.label for grade in answers.grades])
    if answers.completions:
        measures |= extraction_measures(*_extraction_inputs(answers))
    return measures


def _groups(answers: Answers, key: str, measures: dict[str, Measure]) -> dict[str, GroupScores]:
    """The main scores of the rows of each name; a row may have several names or none."""
    rows = {Task.GRADE: answers.grade_rows, Task.EXTRACT: answers.extract_rows}
    names = sorted({name for part in rows.values() for row in part for name in names_in(row, key)})
    return {name: _group(name, key, rows, measures) for name in names}


def _group(name: str, key: str, rows: dict[Task, list[Row]], measures: dict[str, Measure]) -> GroupScores:
    values: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    n_rows: dict[Task, int] = {}
    families: set[str] = set()
    for task in Task:
        chosen = np.array([name in names_in(row, key) for row in rows[task]], dtype=bool)
        groups = [family for family, is_chosen in zip(families_of(rows[task]), chosen, strict=True) if is_chosen]
        own = {measure: measures[measure].of(chosen) for measure in MAIN_MEASURES[task] if measure in measures}
        n_rows[task] = len(groups)
        families |= set(groups)
        values |= {measure: found.value() for measure, found in own.items()}
        intervals |= intervals_of(own, groups)
    return GroupScores(
        n_grade=n_rows[Task.GRADE],
        n_extract=n_rows[Task.EXTRACT],
        n_families=len(families),
        values=values,
        intervals=intervals,
    )


def _grading(answers: Answers) -> GradingScores:
    labels, probabilities = zip(*((grade.label, grade.probabilities) for grade in answers.grades), strict=True)
    gold = [answer_of(row) for row in answers.grade_rows]
    return score_grading(gold, labels, probabilities, families_of(answers.grade_rows))


def _extraction(answers: Answers) -> ExtractionScores:
    truncated = [completion.truncated for completion in answers.completions]
    return score_extraction(*_extraction_inputs(answers), truncated, families_of(answers.extract_rows))


def _unconstrained(answers: Answers) -> ValidityScores:
    families = families_of(answers.extract_rows)
    texts = [completion.text for completion in answers.unconstrained.values()]
    return score_validity(texts, [families[index] for index in answers.unconstrained])


def _extraction_inputs(answers: Answers) -> tuple[list[Extraction], list[str], list[str]]:
    """Gold, answers and exchanges."""
    rows = answers.extract_rows
    texts = [completion.text for completion in answers.completions]
    return [extraction_of(row) for row in rows], texts, [exchange_of(row) for row in rows]
