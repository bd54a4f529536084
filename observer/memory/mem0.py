"""Facts as mem0's records: sentences with metadata, in the shape of its `MemoryItem`, and its names for operations.

Fields: https://github.com/mem0ai/mem0, mem0/configs/base.py of 2.2. mem0 keeps no validity of its own, so that what
holds no longer is a DELETE there; its times go into `metadata`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from observer.memory.facts import Fact, Operation, OperationKind

EVENTS = {OperationKind.ADD: "ADD", OperationKind.INVALIDATE: "DELETE", OperationKind.NOOP: "NONE"}
"""Our operations -> the events of mem0/configs/prompts.py. mem0 2 itself adds only, and leaves the rest to callers."""


def to_mem0(fact: Fact) -> dict[str, Any]:
    """One JSON-ready record. `hash` is the MD5 of the sentence, as mem0 has it."""
    memory = fact.as_text()
    metadata = fact.model_dump(mode="json", exclude={"id", "first_seen", "last_seen"}, exclude_none=True)
    return {
        "id": fact.id,
        "memory": memory,
        "hash": hashlib.md5(memory.encode(), usedforsecurity=False).hexdigest(),
        "metadata": metadata,
        "created_at": fact.first_seen.isoformat(),
        "updated_at": fact.last_seen.isoformat(),
    }


def to_mem0_events(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """What an observation changed, as the list that mem0 calls `memory`: `id`, `text`, `event`. A fact that was there
    already is left out, and so is one that ended as it was added."""
    events = []
    for operation in operations:
        is_over_at_once = operation.kind is OperationKind.ADD and not operation.fact.is_current
        if operation.kind is OperationKind.NOOP or is_over_at_once:
            continue
        events.append({"id": operation.fact.id, "text": operation.fact.as_text(), "event": EVENTS[operation.kind]})
    return events
