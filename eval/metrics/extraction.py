"""How good extractions are: pure scores over gold and the answers as the model wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eval.metrics.measure import Measure, intervals_of, shares
from eval.metrics.row_counts import (
    FOUND,
    GOLD,
    f1_of,
    is_empty,
    is_json_object,
    is_same,
    name_counts,
    parse_answer,
    precision_of,
    recall_of,
    share_of,
    temporal_counts,
    triple_counts,
)
from eval.metrics.significance import Interval
from observer.schema import Extraction


@dataclass(frozen=True)
class ExtractionScores:
    """Shares of rows, and F1 over all entities or triples of all rows together (micro); `counts` says what matches.

    - `temporal_accuracy`: of gold's triples that were found, those with the right temporal. None where none was.
    - `hallucination_rate`: of the names in the answers, those neither in the text nor `User`. None without names.
    - `exact_match` also compares attributes, temporal and when.
    - `correct_empty_rate`: of the `n_empty` rows without gold, those with a valid empty answer. None without such.
    - `truncation_rate`: of the answers, those cut at the token limit.

    `intervals` are 95 %, by family, named as the fields.
    """

    n: int
    n_families: int
    json_validity: float
    schema_validity: float
    entity_f1: float
    entity_f1_partial: float
    triple_f1: float
    triple_f1_temporal: float
    triple_f1_when: float
    triple_precision_temporal: float
    triple_recall_temporal: float
    temporal_accuracy: float | None
    hallucination_rate: float | None
    exact_match: float
    correct_empty_rate: float | None
    truncation_rate: float
    n_empty: int
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidityScores:
    """What share of answers are JSON objects, and hold to the schema, endpoints and names included."""

    n: int
    json_validity: float
    schema_validity: float
    intervals: dict[str, Interval] = field(default_factory=dict)


def score_extraction(
    gold: Sequence[Extraction],
    answers: Sequence[str],
    exchanges: Sequence[str],
    truncated: Sequence[bool] | None = None,
    groups: Sequence[str] | None = None,
) -> ExtractionScores:
    """`truncated` is taken as never, `groups` (the rows' families) as no intervals, where they are not given.

    An answer that breaks the schema's types counts as finding nothing.
    """
    assert len(gold) == len(answers) == len(exchanges) > 0
    measures = extraction_measures(gold, answers, exchanges, truncated)
    return ExtractionScores(
        n=len(gold),
        n_families=len(set(groups)) if groups is not None else len(gold),
        n_empty=sum(map(is_empty, gold)),
        intervals=intervals_of(measures, groups) if groups is not None else {},
        **{name: measure.value() for name, measure in measures.items()},  # type: ignore[arg-type]
    )


def score_validity(answers: Sequence[str], groups: Sequence[str]) -> ValidityScores:
    """Of answers given without the grammar."""
    measures = _validity(answers)
    json_validity, schema_validity = (measures[name].value() or 0.0 for name in ("json_validity", "schema_validity"))
    return ValidityScores(len(answers), json_validity, schema_validity, intervals_of(measures, groups))


def extraction_measures(
    gold: Sequence[Extraction],
    answers: Sequence[str],
    exchanges: Sequence[str],
    truncated: Sequence[bool] | None = None,
) -> dict[str, Measure]:
    """Every figure, by the name of its field."""
    parsed = [parse_answer(answer) for answer in answers]
    temporal = triple_counts(gold, answers, "temporal")
    empty_right = [answer is not None and is_empty(answer) for answer in parsed]
    same = [answer is not None and is_same(expected, answer) for expected, answer in zip(gold, parsed, strict=True)]
    return _validity(answers) | {
        "entity_f1": Measure(triple_counts(gold, answers, "entity"), f1_of),
        "entity_f1_partial": Measure(triple_counts(gold, answers, "entity_partial"), f1_of),
        "triple_f1": Measure(triple_counts(gold, answers, "triple"), f1_of),
        "triple_f1_temporal": Measure(temporal, f1_of),
        "triple_f1_when": Measure(triple_counts(gold, answers, "when"), f1_of),
        "triple_precision_temporal": Measure(temporal, precision_of, trials=FOUND),
        "triple_recall_temporal": Measure(temporal, recall_of, trials=GOLD),
        "temporal_accuracy": Measure(temporal_counts(gold, answers), share_of),
        "hallucination_rate": Measure(name_counts(exchanges, answers), share_of),
        "exact_match": Measure(shares(same), share_of),
        "correct_empty_rate": Measure(shares(empty_right, [is_empty(expected) for expected in gold]), share_of),
        "truncation_rate": Measure(shares(truncated or [False] * len(gold)), share_of),
    }


def _validity(answers: Sequence[str]) -> dict[str, Measure]:
    parsed = [parse_answer(answer) for answer in answers]
    return {
        "json_validity": Measure(shares([is_json_object(answer) for answer in answers]), share_of),
        "schema_validity": Measure(shares([p is not None and not p.faults() for p in parsed]), share_of),
    }
