"""What of an extraction is right, counted row by row: the numbers that scores, intervals and tests are made of.

nervaluate scores tagged spans of a text. Our answers are sets of names without positions, so the counting is ours;
its distinction of strict and partial is kept.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from observer.schema import Entity, Extraction, Relationship, canonical_triple

Level = Literal["triple", "temporal", "when", "entity", "entity_partial"]
Counts = npt.NDArray[np.int64]
GOLD, FOUND = 1, 2
"""Columns of counts with three; the first is what is right."""
_WORD = re.compile(r"\w+")


def triple_counts(gold: Sequence[Extraction], answers: Sequence[str], level: Level) -> Counts:
    """(n_rows, 3): right, gold, found. An answer that breaks the schema's types counts as finding nothing.

    - triple: what `canonical_triple` makes of it; temporal: and its temporal; when: and its `when`.
    - entity: name and type. entity_partial: all words of one name stand in the other, whatever the type; each
      entity is matched once.

    Names and `when` are compared in NFC, without regard to case and spacing.
    """
    keys, rows = _KEYS[level], []
    for expected, answer in zip(gold, answers, strict=True):
        ours, theirs = keys(expected), keys(parse_answer(answer) or Extraction())
        n_right = _n_overlapping(ours, theirs) if level == "entity_partial" else len(ours & theirs)
        rows.append((n_right, len(ours), len(theirs)))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def temporal_counts(gold: Sequence[Extraction], answers: Sequence[str]) -> Counts:
    """(n_rows, 2): of gold's triples with temporal whose triple was found, those found with that temporal, and all."""
    rows = []
    for expected, answer in zip(gold, answers, strict=True):
        found = parse_answer(answer) or Extraction()
        triples = _triples(found)
        matched = {(triple, temporal) for triple, temporal in _temporal_triples(expected) if triple in triples}
        rows.append((len(matched & _temporal_triples(found)), len(matched)))
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def name_counts(exchanges: Sequence[str], answers: Sequence[str]) -> Counts:
    """(n_rows, 2): names in the answer that neither stand in the exchange nor are `User`, and all names in it."""
    rows = []
    for exchange, answer in zip(exchanges, answers, strict=True):
        names = _names(parse_answer(answer) or Extraction())
        rows.append((sum(not is_grounded(name, exchange) for name in names), len(names)))
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def f1_of(counts: np.ndarray) -> np.ndarray:
    """(…, 3) right, gold, found -> F1 (…): 2PR/(P+R) in counts; 1 with nothing to find and nothing found."""
    total = counts[..., 1] + counts[..., 2]
    return np.where(total > 0, 2 * counts[..., 0] / np.maximum(total, 1), 1.0)


def precision_of(counts: np.ndarray) -> np.ndarray:
    """Right among found; of nothing found, whether there was nothing to find."""
    right, gold, found = np.moveaxis(np.asarray(counts), -1, 0)
    return np.where(found > 0, right / np.maximum(found, 1), gold == 0)


def recall_of(counts: np.ndarray) -> np.ndarray:
    """Right among gold; of nothing to find, whether nothing was found."""
    right, gold, found = np.moveaxis(np.asarray(counts), -1, 0)
    return np.where(gold > 0, right / np.maximum(gold, 1), found == 0)


def share_of(counts: np.ndarray) -> np.ndarray:
    """(…, 2) count, all -> share (…); NaN of nothing."""
    return np.where(counts[..., 1] > 0, counts[..., 0] / np.maximum(counts[..., 1], 1), np.nan)


@lru_cache(maxsize=4096)  # every measure asks
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


def is_same(one: Extraction, other: Extraction) -> bool:
    """Equal in all: attributes, temporal and when included; order and case aside."""
    attributes = [
        {(*_entity(e), frozenset(e.attributes.items())) for e in extraction.entities} for extraction in (one, other)
    ]
    return attributes[0] == attributes[1] and _when_triples(one) == _when_triples(other)


def is_grounded(name: str, exchange: str) -> bool:
    """Whether the name is `User`, or its words follow one another in the exchange."""
    words = _words(name)
    if words == ["user"]:
        return True
    if not words:  # a name of signs alone
        return _plain(name) in _plain(exchange)
    return f" {' '.join(words)} " in f" {' '.join(_words(exchange))} "


def _n_overlapping(gold: frozenset[Any], found: frozenset[Any]) -> int:
    """The most pairs of overlapping names, each name in one pair."""
    ours, theirs = ([set(_words(name)) or {name} for name, _ in sorted(entities)] for entities in (gold, found))
    overlap = [[one <= other or other <= one for other in theirs] for one in ours]
    if not any(map(any, overlap)):
        return 0
    return int((maximum_bipartite_matching(csr_array(np.array(overlap, dtype=np.int8))) >= 0).sum())


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def _words(text: str) -> list[str]:
    return _WORD.findall(_plain(text))


def _names(extraction: Extraction) -> set[str]:
    ends = {end for r in extraction.relationships for end in (r.subject, r.object)}
    return {_plain(name) for name in ends | {e.name for e in extraction.entities}}


def _entity(entity: Entity) -> tuple[str, str]:
    return _plain(entity.name), str(entity.type)


def _triple(relation: Relationship) -> tuple[str, str, str]:
    return canonical_triple(_plain(relation.subject), str(relation.predicate), _plain(relation.object))


def _entities(extraction: Extraction) -> frozenset[tuple[str, str]]:
    return frozenset(_entity(e) for e in extraction.entities)


def _triples(extraction: Extraction) -> frozenset[Hashable]:
    return frozenset(_triple(r) for r in extraction.relationships)


def _temporal_triples(extraction: Extraction) -> frozenset[tuple[tuple[str, str, str], str]]:
    return frozenset((_triple(r), str(r.temporal)) for r in extraction.relationships)


def _when_triples(extraction: Extraction) -> frozenset[Hashable]:
    return frozenset((_triple(r), str(r.temporal), _plain(r.when or "")) for r in extraction.relationships)


_KEYS: dict[str, Callable[[Extraction], frozenset[Hashable]]] = {
    "triple": _triples,
    "temporal": _temporal_triples,
    "when": _when_triples,
    "entity": _entities,
    "entity_partial": _entities,
}
