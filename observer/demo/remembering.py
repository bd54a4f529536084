"""The memory behind the page: a file's, or one that ends with the visit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from observer.memory.diff import changes, remember
from observer.memory.facts import Fact, OperationKind
from observer.memory.said import Said
from observer.memory.store import Store
from observer.observation import Observation


@dataclass(frozen=True)
class Memory:
    """What is known after the last exchange, ended facts too, and what the last call changed, by the fact's id.

    `told` is what it was told; that of a file is the file's business.
    """

    facts: Sequence[Fact] = ()
    changes: Mapping[str, OperationKind] = field(default_factory=dict)
    told: Sequence[Said] = ()

    def without_changes(self) -> Memory:
        return Memory(self.facts, {}, self.told)


def recall(store: Store | None) -> Memory:
    """The memory at the start of a visit."""
    return Memory(store.known(is_current=False)) if store else Memory()


def take_in(memory: Memory, observation: Observation, store: Store | None) -> Memory:
    """The memory afterwards. An exchange that it knows already changes nothing: each counts once."""
    said = Said.of(observation, source=observation.id or "")
    if store:
        observation = observation.model_copy(update={"text_hash": None})  # the id tells texts and given times apart
        operations = store.apply(observation, said.source, said.seen_at)
        told, facts = memory.told, store.known(is_current=False)
    elif any(said.source == earlier.source for earlier in memory.told):
        return memory
    else:
        told = [*memory.told, said]
        facts = remember(told)
        operations = changes(memory.facts, facts)
    kinds = {operation.fact.id: operation.kind for operation in operations if operation.kind is not OperationKind.NOOP}
    return Memory(facts, {**memory.changes, **kinds}, told)
