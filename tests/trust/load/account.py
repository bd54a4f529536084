"""Who asked what, when the answer came, and whether it was the right one: the book of a load test.

All of it is reserved and touched before the first request, so that keeping it does not look like a leak.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from observer.observation import Observation

TOLERANCE = 0.02
"""Of a probability: how far the answer of a turn may move with the company it had. Rounding moves it by less."""
_KEPT = 20
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the call to its answer, waiting for the others included."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Account:
    """What became of all requests. Lost: asked, never answered. `n_foreign` got the answer of another turn.

    `n_moved` had the label, names and facts that the turn has alone, but a probability over the tolerance apart;
    `n_different` had others, which are nobody else's either: rounding tips answers whose tokens are nearly equal.
    """

    n_asked: int
    n_answered: int
    n_lost: int
    n_repeated: int
    n_errors: int
    n_foreign: int
    n_different: int
    n_moved: int
    largest_move: float
    requests_per_s: float
    fewest_by_a_caller: int
    most_by_a_caller: int
    latency: Latency | None
    errors: dict[str, int]
    differences: list[dict[str, Any]]


class Ledger:
    """Holds up to `capacity` requests; `alone` are the observations of the turns asked one by one, in order."""

    def __init__(self, alone: Sequence[Observation], n_callers: int, capacity: int) -> None:
        self._alone = [without_figures(found) for found in alone]
        self._figures = [figures(found) for found in alone]
        self._turn = np.full(capacity, -1, np.int32)
        self._latency_s = np.full(capacity, np.nan, np.float32)
        self._n_answers = np.full(capacity, 0, np.uint8)
        self._by_caller = np.full(n_callers, 0, np.int64)
        self.n_callers = n_callers
        self._lock = threading.Lock()
        self._n_asked = self._n_foreign = self._n_different = self._n_moved = 0
        self._largest_move = 0.0
        self._errors: Counter[str] = Counter()
        self._differences: list[dict[str, Any]] = []
        self.is_full = False

    def ask(self) -> tuple[int, int]:
        """The next request's number and its turn's, which go round."""
        with self._lock:
            number = self._n_asked
            self._n_asked += 1
            self.is_full = self._n_asked + len(self._by_caller) >= len(self._turn)
        turn = number % len(self._alone)
        self._turn[number] = turn
        return number, turn

    def answered(self, number: int, caller: int, seconds: float, found: Observation) -> None:
        """Book an answer. `found.id` is the request's number as text when it came to the one who asked."""
        own = self._turn[number]
        is_same, values = without_figures(found) == self._alone[own], figures(found)
        move = _furthest(values, self._figures[own]) if is_same else 0.0
        is_named = bool(found.entities)  # turns without names have the answers of many others
        is_foreign = found.id != str(number) or (is_named and not is_same and without_figures(found) in self._alone)
        with self._lock:
            self._n_answers[number] += 1
            self._latency_s[number] = seconds
            self._by_caller[caller] += 1
            self._n_foreign += is_foreign
            self._n_different += not is_same and not is_foreign
            self._n_moved += move > TOLERANCE
            self._largest_move = max(self._largest_move, move)
            if not is_same and len(self._differences) < _KEPT:
                pair = {"alone": self._alone[own], "found": without_figures(found)}
                shown = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in pair.items()}
                self._differences.append({"turn": int(own), **shown})

    def failed(self, number: int, error: BaseException) -> None:
        """Book an error in place of an answer."""
        with self._lock:
            self._n_answers[number] += 1
            self._errors[f"{type(error).__name__}: {error}"[:200]] += 1

    def account(self, seconds: float) -> Account:
        """The sums, once all callers have ended or were given up."""
        n_answers = self._n_answers[: self._n_asked]
        latencies = self._latency_s[: self._n_asked]
        latencies = latencies[~np.isnan(latencies)]
        return Account(
            n_asked=self._n_asked,
            n_answered=len(latencies),
            n_lost=int((n_answers == 0).sum()),
            n_repeated=int((n_answers > 1).sum()),
            n_errors=sum(self._errors.values()),
            n_foreign=self._n_foreign,
            n_different=self._n_different,
            n_moved=self._n_moved,
            largest_move=self._largest_move,
            requests_per_s=len(latencies) / seconds,
            fewest_by_a_caller=int(self._by_caller.min()),
            most_by_a_caller=int(self._by_caller.max()),
            latency=Latency(*(float(v) * 1e3 for v in np.percentile(latencies, PERCENTILES)))
            if len(latencies)
            else None,
            errors=dict(self._errors.most_common(_KEPT)),
            differences=self._differences,
        )


def without_figures(found: Observation) -> Observation:
    """What must be equal: label, names, facts and faults; neither probabilities nor the request's id."""
    relationships = [relation.model_copy(update={"confidence": None}) for relation in found.relationships]
    grade = found.grade and found.grade.model_copy(update={"probabilities": None, "confidence": None})
    return found.model_copy(update={"relationships": relationships, "grade": grade, "id": None})


def figures(found: Observation) -> list[float]:
    """Every probability in an observation, in order."""
    shares = list((found.grade.probabilities or {}).values()) if found.grade else []
    return [*shares, *(relation.confidence for relation in found.relationships if relation.confidence is not None)]


def _furthest(some: Sequence[float], others: Sequence[float]) -> float:
    return max((abs(one - other) for one, other in zip(some, others, strict=True)), default=0.0)
