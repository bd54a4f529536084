"""What right means for each task: pure scorers over gold and answers; no files, no models."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from observer.schema import Entity, Extraction, Label, Relationship, canonical_triple

LABELS = [str(label) for label in Label]


@dataclass(frozen=True)
class ClassScores:
    """One label against the rest; `support` is its number of gold rows."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class GradingScores:
    """`confusion` counts rows: gold down, predicted across, both in the order of `Label`."""

    n: int
    accuracy: float
    macro_f1: float
    per_class: dict[str, ClassScores]
    confusion: list[list[int]]


@dataclass(frozen=True)
class ExtractionScores:
    """Shares of rows, and F1 over all entities or triples of all rows together (micro).

    An entity is its name, without regard to case, and type; a triple is what `canonical_triple` makes of it.
    `exact_match` also compares attributes, temporal and when. `correct_empty_rate` is the share of the `n_empty`
    rows without gold that got a valid empty answer; None when there are none.
    """

    n: int
    json_validity: float
    schema_validity: float
    entity_f1: float
    triple_f1: float
    triple_f1_temporal: float
    triple_precision_temporal: float
    triple_recall_temporal: float
    exact_match: float
    correct_empty_rate: float | None
    n_empty: int


def score_grading(gold: Sequence[str], predicted: Sequence[str]) -> GradingScores:
    """Macro-F1 is the mean over the labels that occur among gold or predicted."""
    assert len(gold) == len(predicted) > 0
    gold, predicted = [str(label) for label in gold], [str(label) for label in predicted]
    columns = precision_recall_fscore_support(gold, predicted, labels=LABELS, zero_division=0.0)  # type: ignore[arg-type]
    per_class = {
        label: ClassScores(float(precision), float(recall), float(f1), int(support))
        for label, precision, recall, f1, support in zip(LABELS, *columns, strict=True)  # type: ignore[arg-type]
    }
    occurring = [per_class[label].f1 for label in LABELS if label in gold or label in predicted]
    return GradingScores(
        n=len(gold),
        accuracy=_share(g == p for g, p in zip(gold, predicted, strict=True)),
        macro_f1=sum(occurring) / len(occurring),
        per_class=per_class,
        confusion=confusion_matrix(gold, predicted, labels=LABELS).tolist(),
    )


def score_extraction(gold: Sequence[Extraction], answers: Sequence[str]) -> ExtractionScores:
    """Score answers as the model wrote them. One that breaks the schema's types counts as finding nothing."""
    assert len(gold) == len(answers) > 0
    parsed = [parse_answer(answer) for answer in answers]
    found = [extraction or Extraction() for extraction in parsed]
    pairs = list(zip(gold, found, strict=True))
    entities = _match([(_entities(g), _entities(f)) for g, f in pairs])
    triples = _match([(_triples(g), _triples(f)) for g, f in pairs])
    temporal = _match([(_temporal_triples(g), _temporal_triples(f)) for g, f in pairs])
    on_empty = [p is not None and is_empty(p) for g, p in zip(gold, parsed, strict=True) if is_empty(g)]
    return ExtractionScores(
        n=len(gold),
        json_validity=_share(is_json_object(answer) for answer in answers),
        schema_validity=_share(p is not None and not p.faults() for p in parsed),
        entity_f1=entities.f1,
        triple_f1=triples.f1,
        triple_f1_temporal=temporal.f1,
        triple_precision_temporal=temporal.precision,
        triple_recall_temporal=temporal.recall,
        exact_match=_share(p is not None and _full(g) == _full(p) for g, p in zip(gold, parsed, strict=True)),
        correct_empty_rate=_share(on_empty) if on_empty else None,
        n_empty=len(on_empty),
    )


def parse_answer(answer: str) -> Extraction | None:
    """The answer as the schema's types, or None; endpoints and the like are left to `Extraction.faults`."""
    try:
        return Extraction.model_validate(json.loads(answer))
    except (ValueError, RecursionError, ValidationError):
        return None


def is_json_object(answer: str) -> bool:
    try:
        return isinstance(json.loads(answer), dict)
    except (ValueError, RecursionError):
        return False


def is_empty(extraction: Extraction) -> bool:
    return not extraction.entities and not extraction.relationships


@dataclass(frozen=True)
class _Match:
    n_right: int
    n_gold: int
    n_found: int

    @property
    def precision(self) -> float:
        return self.n_right / self.n_found if self.n_found else float(not self.n_gold)

    @property
    def recall(self) -> float:
        return self.n_right / self.n_gold if self.n_gold else float(not self.n_found)

    @property
    def f1(self) -> float:
        """2PR/(P+R) in counts; 1 when there was nothing to find and nothing was found."""
        total = self.n_gold + self.n_found
        return 2 * self.n_right / total if total else 1.0


def _match(pairs: Sequence[tuple[frozenset[Hashable], frozenset[Hashable]]]) -> _Match:
    return _Match(
        n_right=sum(len(gold & found) for gold, found in pairs),
        n_gold=sum(len(gold) for gold, _ in pairs),
        n_found=sum(len(found) for _, found in pairs),
    )


def _entity(entity: Entity) -> tuple[str, str]:
    return entity.name.casefold(), str(entity.type)


def _triple(relation: Relationship) -> tuple[str, str, str]:
    return canonical_triple(relation.subject, str(relation.predicate), relation.object)


def _entities(extraction: Extraction) -> frozenset[Hashable]:
    return frozenset(_entity(e) for e in extraction.entities)


def _triples(extraction: Extraction) -> frozenset[Hashable]:
    return frozenset(_triple(r) for r in extraction.relationships)


def _temporal_triples(extraction: Extraction) -> frozenset[Hashable]:
    return frozenset((_triple(r), r.temporal) for r in extraction.relationships)


def _full(extraction: Extraction) -> tuple[frozenset[Hashable], frozenset[Hashable]]:
    entities = frozenset((_entity(e), frozenset(e.attributes.items())) for e in extraction.entities)
    return entities, frozenset((_triple(r), r.temporal, r.when or None) for r in extraction.relationships)


def _share(truths: Iterable[bool]) -> float:
    values = list(truths)
    return sum(values) / len(values)
