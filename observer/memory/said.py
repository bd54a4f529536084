"""What a memory is told: observations, each with the time at which it was said."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from pydantic import TypeAdapter

from observer.memory.facts import End, Key, Operation, Reason, in_utc, key_of
from observer.memory.rules import topic_of
from observer.observation import Observation

ENDS = TypeAdapter(tuple[End, ...])


@dataclass(frozen=True)
class Said:
    """An observation, when it was said, in UTC, by which exchange, and what ended then besides."""

    observation: Observation
    seen_at: datetime
    source: str = ""
    ends: tuple[End, ...] = ()

    @classmethod
    def of(cls, observation: Observation, seen_at: datetime | None = None, source: str = "") -> Self:
        """`seen_at` is by default the observation's own time, else now."""
        return cls(observation, in_utc(seen_at or observation.at or datetime.now(UTC)), source)

    @property
    def keys(self) -> set[Key]:
        return {*map(key_of, self.observation.relationships), *(end.key for end in self.ends)}

    @property
    def topics(self) -> set[str]:
        return set(map(topic_of, self.keys))

    def about(self, topics: Collection[str]) -> Self:
        """What it says of these topics alone."""
        left = [one for one in self.observation.relationships if topic_of(key_of(one)) in topics]
        ends = tuple(end for end in self.ends if topic_of(end.key) in topics)
        return replace(self, observation=self.observation.model_copy(update={"relationships": left}), ends=ends)

    def without(self, key: Key, operations: Iterable[Operation]) -> Self:
        """It, less all that it tells of one triple. `operations` are what it changed: what gave way to that triple
        stays ended."""
        ends = [end for end in self.ends if end.key != key]
        if key in self.keys:
            gave_way = [o.fact for o in operations if o.reason in (Reason.SUPERSEDED, Reason.CONTRADICTED)]
            ends += [End.of(fact) for fact in gave_way if fact.key != key]
        return replace(self, observation=_without(self.observation, key), ends=tuple(ends))


def _without(observation: Observation, key: Key) -> Observation:
    """The observation less what it states of one triple, less the names that stood only there, and less what a fault
    quotes of the answer."""
    left, gone = [], []
    for relationship in observation.relationships:
        (gone if key_of(relationship) == key else left).append(relationship)
    names = {name for relationship in gone for name in (relationship.subject, relationship.object)}
    names -= {name for relationship in left for name in (relationship.subject, relationship.object)}
    entities = [entity for entity in observation.entities if entity.name not in names]
    fault = observation.fault and observation.fault.partition(": ")[0]
    return observation.model_copy(update={"relationships": left, "entities": entities, "fault": fault})
