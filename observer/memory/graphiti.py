"""Facts as the nodes and edges of Graphiti: records that its `EntityNode` and `EntityEdge` accept as they are.

Fields: https://github.com/getzep/graphiti, graphiti_core/nodes.py and edges.py of 0.31. Embeddings are left to it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from observer.errors import ObserverError
from observer.memory.facts import Fact
from observer.schema import Temporal

_GROUP_ID = re.compile(r"[a-zA-Z0-9_-]+")
_NAMESPACE = uuid.UUID("5b2b3a86-3c0e-5c53-8a39-0c4c2a3a7f11")


class Graph(NamedTuple):
    """JSON-ready records; every edge's ends are among the nodes."""

    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]


def to_graphiti(
    facts: Sequence[Fact],
    group_id: str,
    sources: Mapping[str, Sequence[str]] | None = None,
    attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> Graph:
    """Nodes and edges of one user's facts. `group_id` parts the users of a graph: ids of two groups never meet.

    `sources` are the `episodes` of each fact id, `attributes` those of each case-folded name. Where no conversation
    told when a fact ceased to hold, `invalid_at` is the time at which one told that it had: Graphiti takes an edge
    without it for current. A plan is valid from when it was told, as there; `planned_for` has its own time.
    Raises ObserverError for a group id that Graphiti takes and then refuses at every search.
    """
    if not _GROUP_ID.fullmatch(group_id):
        raise ObserverError(f"group id {group_id!r}: letters, digits, - and _ alone are expected")
    nodes: dict[str, dict[str, Any]] = {}
    for fact in facts:
        for name, kind in ((fact.subject, fact.subject_type), (fact.object, fact.object_type)):
            node = nodes.setdefault(name.casefold(), _node(name, group_id, fact.first_seen))
            node["attributes"] = dict((attributes or {}).get(name.casefold(), {}))
            node["created_at"] = min(node["created_at"], fact.first_seen.isoformat())
            if kind and str(kind) not in node["labels"]:
                node["labels"].append(str(kind))
    edges = [_edge(fact, group_id, list((sources or {}).get(fact.id, ()))) for fact in facts]
    return Graph(list(nodes.values()), edges)


def _node(name: str, group_id: str, seen_at: datetime) -> dict[str, Any]:
    return {
        "uuid": _node_uuid(name, group_id),
        "name": name,
        "group_id": group_id,
        "labels": ["Entity"],
        "created_at": seen_at.isoformat(),
        "summary": "",
        "attributes": {},
    }


def _edge(fact: Fact, group_id: str, episodes: list[str]) -> dict[str, Any]:
    attributes = fact.model_dump(mode="json", include={"temporal", "when", "ended_by", "stated_by", "confidence"})
    is_plan = fact.temporal is Temporal.FUTURE
    if is_plan:
        attributes["planned_for"] = _iso(fact.valid_at)
    return {
        "uuid": _in_group(fact.id, group_id),
        "group_id": group_id,
        "source_node_uuid": _node_uuid(fact.subject, group_id),
        "target_node_uuid": _node_uuid(fact.object, group_id),
        "created_at": fact.first_seen.isoformat(),
        "name": str(fact.predicate),
        "fact": fact.as_text(),
        "episodes": episodes,
        "expired_at": _iso(fact.ended_at),
        "valid_at": _iso(fact.first_seen if is_plan else fact.valid_at),
        "invalid_at": _iso(fact.ended_at if is_plan else fact.invalid_at or fact.ended_at),
        "reference_time": fact.first_seen.isoformat(),
        "attributes": {key: value for key, value in attributes.items() if value is not None},
    }


def _node_uuid(name: str, group_id: str) -> str:
    return _in_group(f"node/{name.casefold()}", group_id)


def _in_group(name: str, group_id: str) -> str:
    return str(uuid.uuid5(uuid.uuid5(_NAMESPACE, group_id), name))


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
