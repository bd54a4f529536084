"""What is measured and only warned about: balance, hard cases, variety, lengths, name overlap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from observer.data.audit.leakage import same
from observer.data.audit.rows import AuditRow
from observer.data.audit.similarity import words_of
from observer.prompts import Task
from observer.schema import USER, Extraction, Label, Temporal, Unseen

Rows = Sequence[AuditRow]
Unit = Literal["share", "count", "number"]
NONE = "–"
EVENT_PREDICATES = frozenset({"VISITS", "ATTENDS"})
"""Once completed they are over, and nothing has changed."""


@dataclass(frozen=True)
class Measure:
    """One figure of some rows, None where they have none of its kind; `low` and `high` bound it for the whole."""

    key: str
    name: str
    unit: Unit
    value: float | None
    low: float = -math.inf
    high: float = math.inf

    @property
    def bounds(self) -> str:
        """`10 % to 15 %`, `at least 300`, or nothing."""
        low, high = (
            f"{bound:.3g}" if self.unit != "share" else f"{100 * bound:.3g} %" for bound in (self.low, self.high)
        )
        if math.isinf(self.low):
            return "" if math.isinf(self.high) else f"at most {high}"
        return f"at least {low}" if math.isinf(self.high) else f"{low} to {high}"

    @property
    def is_off(self) -> bool:
        return self.value is not None and not self.low <= self.value <= self.high


def measure(rows: Rows, train: Rows, max_length: int) -> list[Measure]:
    """Every measure of the rows, in the order of the report; `train` is what names are new against."""
    return [
        *_balance(rows),
        *_hard_cases(rows),
        *_inventories(rows),
        *_novelty(rows, train),
        *_variety("user_turns", "user turns", [row.user_turn for row in rows]),
        *_variety("replies", "replies", [row.reply for row in rows]),
        *_lengths(rows, max_length),
    ]


def _balance(rows: Rows) -> list[Measure]:
    labels, golds = [row.completion for row in rows if row.task == Task.GRADE], _golds(rows)
    shares = {label: _share(one == label for one in labels) for label in Label}  # by design
    is_empty = [not gold.entities and not gold.relationships for gold in golds]
    return [
        Measure("rows", "rows", "count", len(rows)),
        Measure("grading_rows", "grading rows", "count", len(labels)),
        Measure("extraction_rows", "extraction rows", "count", len(golds)),
        *(Measure(f"label_{label}", f"{label}, of grading rows", "share", share) for label, share in shares.items()),
        Measure("empty_extraction", "nothing to extract, of extraction rows", "share", _share(is_empty), 0.1, 0.15),
    ]


def _hard_cases(rows: Rows) -> list[Measure]:
    multi_turn, multi_entity = _share(bool(row.context) for row in rows), _share(map(_is_multi, rows))
    non_ongoing, changed = (_share(map(is_so, _golds(rows))) for is_so in (_is_non_ongoing, _is_change))
    return [
        Measure("multi_turn", "with earlier turns", "share", multi_turn, 0.25),
        Measure("multi_entity", "of two or more entities", "share", multi_entity, 0.3),
        Measure("non_ongoing", "a state not ongoing, of extraction rows", "share", non_ongoing, 0.35),
        Measure("change_or_ending", "a state that ended or changed, of extraction rows", "share", changed, 0.2),
    ]


def _inventories(rows: Rows) -> list[Measure]:
    predicates = predicate_counts(rows)
    families = Counter(name for row in rows for name in set(row.families))
    frames = Counter(name for row in rows for name in set(row.frames))
    largest_family, largest_frame = (max((n / len(rows) for n in c.values()), default=None) for c in (families, frames))
    return [
        Measure("predicates", "predicates", "count", len(predicates)),
        Measure("predicates_used_once", "predicates used once", "count", sum(n == 1 for n in predicates.values())),
        Measure("families", "families", "count", len(families) or None, 120),
        Measure("largest_family", "largest family", "share", largest_family),
        Measure("frames", "frames", "count", len(frames) or None, 300),
        Measure("largest_frame", "largest frame", "share", largest_frame, high=0.015),
    ]


def _novelty(rows: Rows, train: Rows) -> list[Measure]:
    known, names = ({name for row in part for name in row.names} for part in (train, rows))
    unseen = [row.unseen for row in rows if row.unseen]
    shares = {kind: _share(one == kind for one in unseen) for kind in get_args(Unseen)}
    named = [row.names for row in rows if row.names and known]
    only_new, new = _share(map(known.isdisjoint, named)), _share(not known.issuperset(own) for own in named)
    return [
        *(Measure(f"unseen_{kind}", f"`unseen`: {kind}", "share", share) for kind, share in shares.items()),
        Measure("names", "distinct names", "count", len(names) or None),
        Measure("known_names", "distinct names that train has", "share", _share(n in known for n in names if known)),
        Measure("a_new_name", "with a name not in train", "share", new),
        Measure("only_new_names", "with no name in train", "share", only_new),
    ]


def _variety(key: str, name: str, texts: Sequence[str]) -> list[Measure]:
    counts = Counter(same(text) for text in texts if text)
    most_frequent = max(counts.values()) / counts.total() if counts else None
    words = [words_of(text) for text in texts]
    return [
        Measure(f"distinct_{key}", f"distinct {name}", "count", len(counts)),
        Measure(f"distinct_1_{key}", f"distinct-1 of {name}", "number", _distinct(words, 1)),
        Measure(f"distinct_2_{key}", f"distinct-2 of {name}", "number", _distinct(words, 2)),
        Measure(f"most_frequent_{key}", f"most frequent of {name}", "share", most_frequent),
    ]


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Distinct n-grams over all n-grams (Li et al. 2016); it falls as the number of rows grows."""
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _lengths(rows: Rows, max_length: int) -> list[Measure]:
    tokens = [row.tokens for row in rows]
    characters = {label: [len(row.user_turn) for row in rows if row.completion == label] for label in Label}
    return [
        *(
            Measure(f"characters_{label}", f"characters of a user turn, median, {label}", "count", quantile(ns, 0.5))
            for label, ns in characters.items()
        ),
        Measure("tokens_mean", "tokens, mean", "number", sum(tokens) / len(tokens)),
        Measure("tokens_p50", "tokens, median", "count", quantile(tokens, 0.5)),
        Measure("tokens_p95", "tokens, 95th percentile", "count", quantile(tokens, 0.95)),
        Measure("tokens_max", "tokens, most", "count", max(tokens)),
        Measure("tokens_over", f"rows over {max_length:,} tokens", "count", sum(n > max_length for n in tokens)),
    ]


def figure(value: float | None, unit: Unit) -> str:
    """A figure as the report shows it."""
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:,.0f}" if unit == "count" else f"{value:,.2f}"


def quantile(values: Sequence[int], share: float) -> int | None:
    """The nearest-rank quantile: a value that occurs."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def predicate_counts(rows: Rows) -> Counter[str]:
    return Counter(sorted(str(relation.predicate) for gold in _golds(rows) for relation in gold.relationships))


def entity_type_counts(rows: Rows) -> Counter[str]:
    return Counter(sorted(str(entity.type) for gold in _golds(rows) for entity in gold.entities))


def slice_counts(rows: Rows, task: Task) -> Counter[str]:
    return Counter(name for row in rows if row.task == task for name in row.slices)


def _golds(rows: Rows) -> list[Extraction]:
    return [row.extraction for row in rows if row.extraction is not None]


def _share(hits: Iterable[bool]) -> float | None:
    flags = list(hits)
    return sum(flags) / len(flags) if flags else None


def _is_multi(row: AuditRow) -> bool:
    """By gold where there is one; a grading row says so by its slice."""
    if row.extraction is None:
        return "multi_entity" in row.slices
    return sum(entity.name != USER for entity in row.extraction.entities) >= 2


def _is_non_ongoing(gold: Extraction) -> bool:
    return any(relation.temporal != Temporal.ONGOING for relation in gold.relationships)


def _is_change(gold: Extraction) -> bool:
    return any(r.temporal == Temporal.COMPLETED and r.predicate not in EVENT_PREDICATES for r in gold.relationships)
