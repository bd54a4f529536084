"""The memory behind the page: a file's, or one that ends with the visit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from observer.memory.diff import apply_operations, diff
from observer.memory.facts import Fact, Operation, OperationKind
from observer.memory.store import Store
from observer.observation import Observation


@dataclass(frozen=True)
class Memory:
    """What is known after the last exchange, ended facts too, and what the last call changed, by the fact's id.

    `sources` are the exchanges it knows; those of a file are the file's business.
    """

    facts: Sequence[Fact] = ()
    changes: Mapping[str, OperationKind] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()

    def without_changes(self) -> Memory:
        return Memory(self.facts, {}, self.sources)


def recall(store: Store | None) -> Memory:
    """The memory at the start of a visit."""
    return Memory(store.known(is_current=False)) if store else Memory()


def take_in(memory: Memory, observation: Observation, store: Store | None) -> Memory:
    """The memory afterwards. An exchange that it knows already changes nothing: each counts once."""
    source, now = observation.id or "", datetime.now(UTC)
    if store:
        observation = observation.model_copy(update={"text_hash": None})  # the id tells texts and given times apart
        operations = store.apply(observation, source, observation.at or now)
        return _after(memory, store.known(is_current=False), operations, source)
    if source in memory.sources:
        return memory
    operations = diff(observation, memory.facts, observation.at or now)
    return _after(memory, apply_operations(memory.facts, operations), operations, source)


def _after(memory: Memory, facts: Sequence[Fact], operations: Sequence[Operation], source: str) -> Memory:
    changes = {
        operation.fact.id: operation.kind for operation in operations if operation.kind is not OperationKind.NOOP
    }
    return Memory(facts, {**memory.changes, **changes}, memory.sources | {source})
