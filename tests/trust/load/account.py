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

_KEPT = 20
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


@dataclass(frozen=True)
class Account:
    """What became of all requests.

    `wrong` counts all but those that got their own answer, once. Lost: asked, never answered. Foreign: the answer of
    another turn. Different: nobody's answer, since rounding tips answers whose tokens are nearly equal.
    `latency_ms`, by PERCENTILES, is from the call to its answer, waiting for the others included.
    """

    n_asked: int
    n_answered: int
    wrong: dict[str, int]
    requests_per_s: float
    fewest_by_a_caller: int
    most_by_a_caller: int
    latency_ms: dict[str, float]
    errors: dict[str, int]
    differences: list[dict[str, Any]]


class Ledger:
    """Holds up to `capacity` requests; `alone` are the observations of the turns asked one by one, in order."""

    def __init__(self, alone: Sequence[Observation], n_callers: int, capacity: int) -> None:
        self._alone = [without_figures(found) for found in alone]
        self._latency_s = np.full(capacity, np.nan, np.float32)
        self._n_answers = np.full(capacity, 0, np.uint8)
        self._by_caller = np.full(n_callers, 0, np.int64)
        self.n_callers = n_callers
        self._lock = threading.Lock()
        self._n_asked = self._n_foreign = self._n_different = 0
        self._errors: Counter[str] = Counter()
        self._differences: list[dict[str, Any]] = []
        self.is_full = False

    def ask(self) -> tuple[int, int]:
        """The next request's number and its turn's, which go round."""
        with self._lock:
            number = self._n_asked
            self._n_asked += 1
            self.is_full = self._n_asked + len(self._by_caller) >= len(self._n_answers)
        return number, number % len(self._alone)

    def answered(self, number: int, caller: int, seconds: float, found: Observation) -> None:
        """Book an answer. `found.id` is the request's number as text when it came to the one who asked."""
        own, words = number % len(self._alone), without_figures(found)
        is_same = words == self._alone[own]
        is_named = bool(found.entities)  # turns without names have the answers of many others
        is_foreign = found.id != str(number) or (is_named and not is_same and words in self._alone)
        with self._lock:
            self._n_answers[number] += 1
            self._latency_s[number] = seconds
            self._by_caller[caller] += 1
            self._n_foreign += is_foreign
            self._n_different += not is_same and not is_foreign
            if not is_same and len(self._differences) < _KEPT:
                pair = {"alone": self._alone[own], "found": words}
                shown = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in pair.items()}
                self._differences.append({"turn": own, **shown})

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
            wrong={
                "lost": int((n_answers == 0).sum()),
                "twice": int((n_answers > 1).sum()),
                "foreign": self._n_foreign,
                "different": self._n_different,
                "errors": sum(self._errors.values()),
            },
            requests_per_s=len(latencies) / seconds,
            fewest_by_a_caller=int(self._by_caller.min()),
            most_by_a_caller=int(self._by_caller.max()),
            latency_ms={name: 1e3 * float(np.percentile(latencies, p)) for name, p in PERCENTILES.items()}
            if len(latencies)
            else {},
            errors=dict(self._errors.most_common(_KEPT)),
            differences=self._differences,
        )


def without_figures(found: Observation) -> Observation:
    """What must be equal: label, names, facts and faults; neither probabilities, which rounding moves, nor the id."""
    relationships = [relation.model_copy(update={"confidence": None}) for relation in found.relationships]
    grade = found.grade and found.grade.model_copy(update={"probabilities": None, "confidence": None})
    return found.model_copy(update={"relationships": relationships, "grade": grade, "id": None})
