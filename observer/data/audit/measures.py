"""What is measured and only warned about: balance, hard cases, variety, lengths, name overlap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
    of: Callable[[Rows], float | None]
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

    def is_off(self, value: float | None) -> bool:
        return value is not None and not self.low <= value <= self.high


def measures(train: Rows, max_length: int) -> list[Measure]:
    """Every measure, in the order of the report; `train` is what names are new against."""
    return [*_balance(), *_hard_cases(), *_inventories(), *_novelty(train), *_variety(), *_lengths(max_length)]


def _balance() -> list[Measure]:
    labels = [
        Measure(f"label_{label}", f"{label}, of grading rows", "share", _label_share(label))  # shares are by design
        for label in Label
    ]
    return [
        Measure("rows", "rows", "count", len),
        Measure("grading_rows", "grading rows", "count", lambda rows: len(_of(rows, Task.GRADE))),
        Measure("extraction_rows", "extraction rows", "count", lambda rows: len(_golds(rows))),
        *labels,
        Measure(
            "empty_extraction", "nothing to extract, of extraction rows", "share", _gold_share(_is_empty), 0.1, 0.15
        ),
    ]


def _hard_cases() -> list[Measure]:
    name = "a state that ended or changed, of extraction rows"
    return [
        Measure("multi_turn", "with earlier turns", "share", lambda rows: _share(bool(r.context) for r in rows), 0.25),
        Measure("multi_entity", "of two or more entities", "share", lambda rows: _share(map(_is_multi, rows)), 0.3),
        Measure("non_ongoing", "a state not ongoing, of extraction rows", "share", _gold_share(_is_non_ongoing), 0.35),
        Measure("change_or_ending", name, "share", _gold_share(_is_change), 0.2),
    ]


def _inventories() -> list[Measure]:
    return [
        Measure("predicates", "predicates", "count", lambda rows: len(predicate_counts(rows))),
        Measure("predicates_used_once", "predicates used once", "count", _used_once),
        Measure("families", "families", "count", lambda rows: len(_ids(rows, "families")) or None, 120),
        Measure("largest_family", "largest family", "share", lambda rows: _largest(rows, "families")),
        Measure("frames", "frames", "count", lambda rows: len(_ids(rows, "frames")) or None, 300),
        Measure("largest_frame", "largest frame", "share", lambda rows: _largest(rows, "frames"), high=0.015),
    ]


def _novelty(train: Rows) -> list[Measure]:
    known = {name for row in train for name in row.names}

    def share(is_new: Callable[[AuditRow], bool]) -> Callable[[Rows], float | None]:
        return lambda rows: _share(is_new(row) for row in rows if row.names and known)

    def known_names(rows: Rows) -> float | None:
        return _share(name in known for name in _names(rows)) if known else None

    kinds = [Measure(f"unseen_{kind}", f"`unseen`: {kind}", "share", _unseen_share(kind)) for kind in get_args(Unseen)]
    return [
        *kinds,
        Measure("names", "distinct names", "count", lambda rows: len(_names(rows)) or None),
        Measure("known_names", "distinct names that train has", "share", known_names),
        Measure("a_new_name", "with a name not in train", "share", share(lambda r: not known.issuperset(r.names))),
        Measure("only_new_names", "with no name in train", "share", share(lambda r: known.isdisjoint(r.names))),
    ]


def _variety() -> list[Measure]:
    found: list[Measure] = []
    turns: tuple[tuple[str, str, Callable[[AuditRow], str]], ...] = (
        ("user_turns", "user turns", lambda row: row.user_turn),
        ("replies", "replies", lambda row: row.reply),
    )
    for key, name, text in turns:
        found += [
            Measure(f"distinct_{key}", f"distinct {name}", "count", _distinct(text)),
            Measure(f"distinct_1_{key}", f"distinct-1 of {name}", "number", _distinct_n(text, 1)),
            Measure(f"distinct_2_{key}", f"distinct-2 of {name}", "number", _distinct_n(text, 2)),
            Measure(f"most_frequent_{key}", f"most frequent of {name}", "share", _most_frequent(text)),
        ]
    return found


def _lengths(max_length: int) -> list[Measure]:
    def tokens(statistic: Callable[[list[int]], float]) -> Callable[[Rows], float | None]:
        return lambda rows: statistic([row.tokens for row in rows]) if rows else None

    characters = [
        Measure(f"characters_{label}", f"characters of a user turn, median, {label}", "count", _characters(label))
        for label in Label
    ]
    return [
        *characters,
        Measure("tokens_mean", "tokens, mean", "number", tokens(lambda ns: sum(ns) / len(ns))),
        Measure("tokens_p50", "tokens, median", "count", tokens(lambda ns: quantile(ns, 0.5))),
        Measure("tokens_p95", "tokens, 95th percentile", "count", tokens(lambda ns: quantile(ns, 0.95))),
        Measure("tokens_max", "tokens, most", "count", tokens(max)),
        Measure(
            "tokens_over", f"rows over {max_length:,} tokens", "count", lambda r: sum(x.tokens > max_length for x in r)
        ),
    ]


def figure(value: float | None, unit: Unit) -> str:
    """A figure as the report shows it."""
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:,.0f}" if unit == "count" else f"{value:,.2f}"


def quantile(values: Sequence[int], share: float) -> int:
    """The nearest-rank quantile: a value that occurs."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def predicate_counts(rows: Rows) -> Counter[str]:
    return Counter(str(relation.predicate) for gold in _golds(rows) for relation in gold.relationships)


def entity_type_counts(rows: Rows) -> Counter[str]:
    return Counter(str(entity.type) for gold in _golds(rows) for entity in gold.entities)


def slice_counts(rows: Rows, task: Task) -> Counter[str]:
    return Counter(name for row in _of(rows, task) for name in row.slices)


def _of(rows: Rows, task: Task) -> list[AuditRow]:
    return [row for row in rows if row.task == task]


def _golds(rows: Rows) -> list[Extraction]:
    return [row.extraction for row in rows if row.extraction is not None]


def _share(hits: Iterable[bool]) -> float | None:
    flags = list(hits)
    return sum(flags) / len(flags) if flags else None


def _names(rows: Rows) -> set[str]:
    return {name for row in rows for name in row.names}


def _label_share(label: Label) -> Callable[[Rows], float | None]:
    return lambda rows: _share(row.completion == label for row in _of(rows, Task.GRADE))


def _unseen_share(kind: str) -> Callable[[Rows], float | None]:
    return lambda rows: _share(row.unseen == kind for row in rows if row.unseen)


def _gold_share(is_so: Callable[[Extraction], bool]) -> Callable[[Rows], float | None]:
    return lambda rows: _share(is_so(gold) for gold in _golds(rows))


def _is_empty(gold: Extraction) -> bool:
    return not gold.entities and not gold.relationships


def _is_multi(row: AuditRow) -> bool:
    """By gold where there is one; a grading row says so by its slice."""
    if row.extraction is None:
        return "multi_entity" in row.slices
    return sum(entity.name != USER for entity in row.extraction.entities) >= 2


def _is_non_ongoing(gold: Extraction) -> bool:
    return any(relation.temporal != Temporal.ONGOING for relation in gold.relationships)


def _is_change(gold: Extraction) -> bool:
    return any(r.temporal == Temporal.COMPLETED and r.predicate not in EVENT_PREDICATES for r in gold.relationships)


def _used_once(rows: Rows) -> float:
    return sum(n == 1 for n in predicate_counts(rows).values())


def _ids(rows: Rows, field: Literal["families", "frames"]) -> Counter[str]:
    return Counter(name for row in rows for name in set(getattr(row, field)))


def _largest(rows: Rows, field: Literal["families", "frames"]) -> float | None:
    """The share of rows that hold the most frequent one."""
    return max((n / len(rows) for n in _ids(rows, field).values()), default=None)


def _distinct(text: Callable[[AuditRow], str]) -> Callable[[Rows], float]:
    return lambda rows: len({same(text(row)) for row in rows} - {""})


def _distinct_n(text: Callable[[AuditRow], str], n: int) -> Callable[[Rows], float | None]:
    """Distinct n-grams over all n-grams (Li et al. 2016); it falls as the number of rows grows."""

    def of(rows: Rows) -> float | None:
        grams = [
            tuple(words[i : i + n]) for words in (words_of(text(r)) for r in rows) for i in range(len(words) - n + 1)
        ]
        return len(set(grams)) / len(grams) if grams else None

    return of


def _most_frequent(text: Callable[[AuditRow], str]) -> Callable[[Rows], float | None]:
    def of(rows: Rows) -> float | None:
        counts = Counter(same(text(row)) for row in rows if text(row))
        return max(counts.values()) / counts.total() if counts else None

    return of


def _characters(label: Label) -> Callable[[Rows], float | None]:
    def of(rows: Rows) -> float | None:
        lengths = [len(row.user_turn) for row in _of(rows, Task.GRADE) if row.completion == label]
        return quantile(lengths, 0.5) if lengths else None

    return of
