"""Facts as records of other memory systems; against the packages' own models where they are installed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from observer.errors import ObserverError
from observer.memory.diff import diff
from observer.memory.facts import Fact
from observer.memory.graphiti import Graph, to_graphiti
from observer.memory.mem0 import to_mem0, to_mem0_events
from observer.memory.store import Store
from observer.schema import ATTRIBUTE_KEYS
from tests.memory.test_diff import DAY, known_after, said

OBSERVATIONS = [
    said("User WORKS_AT Siemens ongoing 2019..", "Ana CHILD_OF User ongoing"),
    said("User WORKS_AT Siemens completed", "User WORKS_AT Bosch ongoing", "User VISITS Kyoto future", day=3),
]

MEM0_KEYS = {"data", "user_id", "agent_id", "run_id", "actor_id", "role", "attributed_to", "expiration_date"}
"""What mem0 itself keeps beside the metadata, in `Memory.get` of mem0/memory/main.py."""


@pytest.fixture
def facts() -> list[Fact]:
    return known_after(*OBSERVATIONS)


@pytest.fixture
def graph(facts: list[Fact]) -> Graph:
    siemens = next(fact for fact in facts if fact.object == "Siemens")
    return to_graphiti(facts, "user-1", {siemens.id: ["chat-1", "chat-2"]})


def test_an_edge_tells_when_it_held_and_when_that_was_learnt(graph: Graph) -> None:
    siemens = next(edge for edge in graph.edges if "Siemens" in edge["fact"])
    assert siemens["name"] == "WORKS_AT"
    assert datetime.fromisoformat(siemens["valid_at"]) == datetime(2019, 1, 1, tzinfo=UTC)
    assert siemens["invalid_at"] == siemens["expired_at"] == "2026-01-04T12:00:00+00:00"
    assert (siemens["created_at"], siemens["episodes"]) == (DAY.isoformat(), ["chat-1", "chat-2"])
    bosch = next(edge for edge in graph.edges if "Bosch" in edge["fact"])
    assert (bosch["valid_at"], bosch["invalid_at"], bosch["expired_at"]) == (None, None, None)
    assert bosch["attributes"] == {"temporal": "ongoing"}


def test_edges_join_nodes_that_are_there_once_each(graph: Graph) -> None:
    names = {node["uuid"]: node["name"] for node in graph.nodes}
    assert sorted(names.values()) == ["Ana", "Bosch", "Kyoto", "Siemens", "User"]
    ends = {(names[edge["source_node_uuid"]], edge["name"], names[edge["target_node_uuid"]]) for edge in graph.edges}
    assert ("User", "PARENT_OF", "Ana") in ends


def test_a_node_has_its_type_and_what_was_told_of_it(facts: list[Fact]) -> None:
    nodes = {node["name"]: node for node in to_graphiti(facts, "user-1", None, {"ana": {"age": "9"}}).nodes}
    assert (nodes["Ana"]["labels"], nodes["Ana"]["attributes"]) == (["Entity", "Concept"], {"age": "9"})
    assert nodes["User"]["attributes"] == {}


def test_a_plan_is_valid_from_when_it_was_told_as_graphiti_has_it() -> None:
    facts = known_after(said("User VISITS Kyoto future 2027..2028", day=2))
    (edge,) = to_graphiti(facts, "user-1").edges
    assert edge["valid_at"] == edge["reference_time"] == "2026-01-03T12:00:00+00:00"
    assert edge["invalid_at"] is None
    assert edge["attributes"] == {"temporal": "future", "planned_for": "2027-01-01T00:00:00+00:00"}


@pytest.mark.parametrize("group_id", ["ana@example.org", "two words", "Zoë", "a\n"])
def test_a_group_that_graphiti_would_refuse_at_the_first_search_is_refused(facts: list[Fact], group_id: str) -> None:
    with pytest.raises(ObserverError, match="letters, digits, - and _"):
        to_graphiti(facts, group_id)


def test_the_same_fact_of_two_users_has_two_ids(facts: list[Fact]) -> None:
    one, other = (to_graphiti(facts, group) for group in ("user-1", "user-2"))
    ids = [{record["uuid"] for record in [*graph.nodes, *graph.edges]} for graph in (one, other)]
    assert not ids[0] & ids[1]
    assert to_graphiti(facts, "user-1") == one


def test_records_are_json(facts: list[Fact], graph: Graph) -> None:
    assert json.loads(json.dumps([*graph.nodes, *graph.edges])) == [*graph.nodes, *graph.edges]
    assert json.loads(json.dumps([to_mem0(fact) for fact in facts]))


def test_mem0_gets_sentences_and_a_delete_for_what_is_over() -> None:
    first, second = OBSERVATIONS
    known = known_after(first)
    events = to_mem0_events(diff(second, known))
    assert [(event["event"], event["text"]) for event in events] == [
        ("DELETE", "User works at Siemens (completed)"),
        ("ADD", "User works at Bosch"),
        ("ADD", "User visits Kyoto (planned)"),
    ]
    past = to_mem0_events(diff(said("User WORKS_AT Acme completed", "User LIKES tea ongoing"), []))
    assert [event["text"] for event in past] == ["User likes tea"]
    assert to_mem0_events(diff(first, known)) == []


def test_graphiti_takes_the_records_as_its_own(graph: Graph) -> None:
    edges = pytest.importorskip("graphiti_core.edges", reason="graphiti-core is not installed")
    nodes = pytest.importorskip("graphiti_core.nodes")
    for node in graph.nodes:
        made = nodes.EntityNode.model_validate(node)
        assert made.uuid == node["uuid"] and made.labels == node["labels"]
        assert node.keys() <= nodes.EntityNode.model_fields.keys()
    for edge in graph.edges:
        made = edges.EntityEdge.model_validate(edge)
        for name in ("valid_at", "invalid_at", "expired_at", "created_at"):
            assert getattr(made, name) == (datetime.fromisoformat(edge[name]) if edge[name] else None)
        assert edge.keys() <= edges.EntityEdge.model_fields.keys()
        assert not edge["attributes"].keys() & edge.keys()  # they are stored side by side
    assert not set(ATTRIBUTE_KEYS) & nodes.EntityNode.model_fields.keys()


def test_mem0_takes_the_records_as_its_own(facts: list[Fact]) -> None:
    base = pytest.importorskip("mem0.configs.base", reason="mem0ai is not installed")
    for fact in facts:
        record = to_mem0(fact)
        made = base.MemoryItem.model_validate(record)
        assert made.model_dump(exclude_none=True) == record
        assert not record["metadata"].keys() & (base.MemoryItem.model_fields.keys() | MEM0_KEYS)


def test_a_memory_exports_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from observer.cli import main

    path = tmp_path / "memory.sqlite"
    with Store(path) as store:
        for number, observation in enumerate(OBSERVATIONS):
            store.apply(observation, str(number))
    assert main(["memory", "export", "--to", "graphiti", str(path)]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert [len(exported["nodes"]), len(exported["edges"])] == [5, 4]
    assert main(["memory", "export", "--to", "mem0", "--about", "user", str(path)]) == 0
    memories = [json.loads(line)["memory"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(memories) == ["User parent of Ana", "User visits Kyoto (planned)", "User works at Bosch"]
    assert main(["memory", "show", str(path)]) == 0
    shown = [json.loads(line)["object"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(shown) == ["Ana", "Bosch", "Kyoto"]
    assert main(["memory", "show", "--all", "--about", "siemens", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["ended_by"] == "stated"
    assert main(["memory", "history", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["ADD", "ADD", "INVALIDATE", "ADD", "ADD"]
    assert all(one["seen_at"] <= other["seen_at"] for one, other in pairwise(lines))
    assert main(["memory", "show", str(tmp_path / "none.sqlite")]) == 1
    assert "no such memory" in capsys.readouterr().err
