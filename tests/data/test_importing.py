"""Rows of the first version become rows of ours: each repair, each fault, and nothing lost on the way."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer.config import UnknownPredicates
from observer.data.aliases import ALIASES, TEMPORAL_ALIASES, TYPE_ALIASES, normalize, resolve_predicate
from observer.data.check import check_files
from observer.data.importing import read_raw_rows, sort_out
from observer.data.raw_rows import parse_line
from observer.data.repairs import repair_row
from observer.errors import ObserverError
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, PROJECT_ROOT
from observer.schema import EntityType, ExtractionRow, GradingRow, Predicate, Temporal

TABLE = PROJECT_ROOT / "tests/data/first_version_predicates.tsv"
GRADING: dict[str, Any] = {
    "user_message": "I live in Lisbon",
    "assistant_message": "Nice.",
    "label": "IMPORTANT",
    "reasoning": "Residence.",
    "confidence": 0.95,
}
EXTRACTION: dict[str, Any] = {
    "user_message": "I live in Lisbon with Ana",
    "assistant_message": "Nice.",
    "entities": [{"name": "User", "type": "Person", "attributes": {}}, {"name": "Lisbon", "type": "Place"}],
    "relationships": [{"subject": "User", "predicate": "LIVES_IN", "object": "Lisbon", "temporal": "ongoing"}],
}


def relation(**changes: Any) -> dict[str, Any]:
    return EXTRACTION | {"relationships": [EXTRACTION["relationships"][0] | changes]}


def lisbon(**changes: Any) -> dict[str, Any]:
    return EXTRACTION | {"entities": [EXTRACTION["entities"][0], EXTRACTION["entities"][1] | changes]}


def write_lines(path: Path, *lines: dict[str, Any] | bytes) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def table() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_at_least_95_percent_of_the_first_versions_relationships_map() -> None:
    total = mapped = closer_than_related = 0
    for entry in table():
        name, count = normalize(entry["predicate"]), int(entry["count"])
        target = name if name in list(Predicate) else ALIASES[name].predicate if name in ALIASES else None
        total += count
        mapped += count if target else 0
        closer_than_related += count if target and target != "RELATED_TO" else 0
    assert total == 2844
    assert mapped == 2711  # 95.3 %
    assert closer_than_related == 2463  # 86.6 %


def test_every_alias_leads_into_the_schema() -> None:
    assert {alias.predicate for alias in ALIASES.values()} <= set(map(str, Predicate))
    assert {alias.temporal for alias in ALIASES.values()} - {None} <= set(map(str, Temporal))
    assert set(TYPE_ALIASES.values()) <= set(map(str, EntityType))
    assert set(TEMPORAL_ALIASES.values()) == set(map(str, Temporal))
    assert all(name == normalize(name) for name in ALIASES)


@pytest.mark.parametrize(
    ("older", "temporal", "ours"),
    [
        ("RESIGNED_FROM", "completed", ("WORKS_AT", "completed")),
        ("MOVED_TO", "completed", ("LIVES_IN", "ongoing")),
        ("MOVED_TO", "future", ("LIVES_IN", "future")),
        ("MOVING_TO", "ongoing", ("LIVES_IN", "future")),
        ("RESIGNED_FROM", "future", ("WORKS_AT", "ongoing")),
        ("VISITING", "completed", ("VISITS", "completed")),
        (" learning about", "ongoing", ("INTERESTED_IN", "ongoing")),
        ("broke-up-with", "completed", ("DATING", "completed")),
        ("STARTS_AT", "future", None),
        ("PREFERS_OVER", "ongoing", None),
    ],
)
def test_an_older_predicate_becomes_predicate_and_state(
    older: str, temporal: str, ours: tuple[str, str] | None
) -> None:
    assert resolve_predicate(older, temporal) == ours


@pytest.mark.parametrize(
    ("row", "kind", "result"),
    [
        (GRADING | {"assistant_message": None}, "missing replies made empty", '"assistant_message":""'),
        (lisbon(attributes={"role": ["home", "work"]}), "attribute values made text", '{"role":"home, work"}'),
        (lisbon(attributes={"age": 3}), "attribute values made text", '{"age":"3"}'),
        (lisbon(attributes={"breed": "beagle"}), "attribute keys moved into detail", '{"detail":"breed beagle"}'),
        (lisbon(attributes={"sunny": True, "detail": "x"}), "attribute keys moved into detail", '"x; sunny"'),
        (lisbon(attributes={"has_sea": False}), "attribute keys moved into detail", '{"detail":"no has sea"}'),
        (lisbon(type="City"), "entity types mapped", '"name":"Lisbon","type":"Place"'),
        (lisbon(type="place"), "entity types mapped", '"name":"Lisbon","type":"Place"'),
        (lisbon(type="Company"), "entity types mapped", '"type":"Organization"'),
        (lisbon(type="Tool"), "entity types mapped", '"type":"Technology"'),
        (lisbon(type="Hobby"), "entity types mapped", '"type":"Concept"'),
        (relation(predicate="lives in"), "predicates mapped", '"predicate":"LIVES_IN"'),
        (relation(predicate="LIVED_IN"), "predicates mapped", '"temporal":"completed"'),
        (relation(temporal="past"), "temporal states mapped", '"temporal":"completed"'),
        (relation(temporal="Current"), "temporal states mapped", '"temporal":"ongoing"'),
        (relation(temporal="planned"), "temporal states mapped", '"temporal":"future"'),
        (relation(subject="I"), "names made User", '"subject":"User"'),
        (relation(subject="USER"), "names made User", '"subject":"User"'),
        (relation(subject="me"), "names made User", '"subject":"User"'),
        (relation(object="Ana"), "endpoints added to the entities", '{"name":"Ana","type":"Concept"'),
        (relation(object="lisbon"), "endpoints spelled as their entity", '"object":"Lisbon"'),
        (EXTRACTION | {"entities": [EXTRACTION["entities"][1]]}, "User added to the entities", '"name":"User"'),
        (
            EXTRACTION | {"entities": EXTRACTION["entities"] + EXTRACTION["entities"][1:]},
            "repeated entities left out",
            '"name":"Lisbon"',
        ),
        (EXTRACTION | {"relationships": EXTRACTION["relationships"] * 2}, "repeated relationships left out", "LIVES"),
    ],
)
def test_what_can_be_repaired_is_repaired_and_counted(row: dict[str, Any], kind: str, result: str) -> None:
    before = json.dumps(row)
    repaired = repair_row(row)
    assert repaired.row is not None, repaired.faults
    assert repaired.repairs[kind] == 1
    assert result in repaired.row.model_dump_json()
    assert json.dumps(row) == before, "the given row stays as it was"


FAULTS: list[tuple[dict[str, Any] | bytes, str]] = [
    (relation(predicate="STARTS_AT"), "relationships.0.predicate: unknown predicate 'STARTS_AT'; rename it"),
    (relation(object="Porto"), "endpoint 'Porto' is neither among the entities nor in the text"),
    (lisbon(name="the old town of Lisbon proper"), "has more than 5 words"),
    (GRADING | {"label": "KEEP"}, "label: unknown value 'KEEP'"),
    (GRADING | {"user_message": 7}, "user_message: input should be a valid string"),
    (GRADING | {"user_message": ""}, "user_message: "),
    (GRADING | {"user_message": " \n"}, "user_message: nothing but blanks"),
    (EXTRACTION | {"entities": {}}, "entities: input should be a valid list"),
    (EXTRACTION | {"entities": [7]}, "entities.0: "),
    (lisbon(attributes={"role": {"a": 1}}), "entities.1.attributes.role: "),
    (lisbon(attributes=[1]), "entities.1.attributes: "),
    (EXTRACTION | {"relationships": [None]}, "relationships.0: "),
    (relation(temporal="sometimes"), "relationships.0.temporal: unknown value 'sometimes'"),
    ({"user_message": "hi", "assistant_message": ""}, "neither a label nor entities"),
    ({"user_message": "hi", "entities": []}, "relationships: missing"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "a conversation, which has no labels yet; `observer label`"),
    ({"instruction": "hi", "output": "x"}, "rename `instruction` to user_message and `output` to assistant_message"),
    (b'{"user_message": "cut', "not JSON"),
    (b"[1]", "found a list"),
    (b"[" * 100_000, "not JSON"),
    (b'{"user_message": "caf\xe9"}', "not UTF-8 text"),
]


def test_strict_names_every_fault_of_every_file_at_once(tmp_path: Path) -> None:
    paths = [write_lines(tmp_path / f"{n}.jsonl", *(line for line, _ in FAULTS)) for n in range(2)]
    with pytest.raises(ObserverError) as raised:
        read_raw_rows(paths)
    for number, (_, fault) in enumerate(FAULTS, 1):
        told = [line for line in str(raised.value).splitlines() if f".jsonl:{number}: " in line and fault in line]
        assert {line.partition(":")[0] for line in told} == set(map(str, paths)), fault


def test_quarantine_keeps_the_line_its_place_and_the_reasons(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "raw.jsonl", GRADING, b"", *(line for line, _ in FAULTS), EXTRACTION)
    imported = read_raw_rows([path], "quarantine")
    assert [placed.place for placed in imported.rows] == [f"{path}:1", f"{path}:{len(FAULTS) + 3}"]
    for number, (bad, (line, fault)) in enumerate(zip(imported.quarantined, FAULTS, strict=True), 3):
        assert bad.place == f"{path}:{number}"
        assert any(fault in reason for reason in bad.reasons)
        assert bad.line == (line.decode("utf-8", "replace") if isinstance(line, bytes) else json.dumps(line))


def test_related_uses_the_fallback_for_unknown_predicates_alone(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "raw.jsonl", *(line for line, _ in FAULTS))
    imported = read_raw_rows([path], "related")
    assert [placed.place for placed in imported.rows] == [f"{path}:1"]
    row = imported.rows[0].row
    assert isinstance(row, ExtractionRow) and row.relationships[0].predicate == "RELATED_TO"
    assert imported.repairs == {"unknown predicates made RELATED_TO": 1}
    assert len(imported.quarantined) == len(FAULTS) - 1


def test_both_versions_and_both_tasks_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    ours = GRADING | {"context": [{"role": "user", "content": "hi"}], "family": "home/01", "names": ["Lisbon"]}
    path = write_lines(tmp_path / "raw.jsonl", b"\xef\xbb\xbf" + json.dumps(GRADING).encode() + b"\r", ours, EXTRACTION)
    rows = [placed.row for placed in read_raw_rows([path]).rows]
    assert [type(row) for row in rows] == [GradingRow, GradingRow, ExtractionRow]


def test_our_own_rows_need_no_repair() -> None:
    imported = read_raw_rows([PROJECT_ROOT / GRADING_JSONL, PROJECT_ROOT / EXTRACTION_JSONL])
    assert not imported.repairs and not imported.quarantined and imported.n_repaired == 0


def test_the_summary_is_one_line_with_all_counts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "raw.jsonl", GRADING, relation(temporal="past", subject="I"), b"nonsense")
    summary = read_raw_rows([path], "quarantine").summary()
    assert summary == "2 rows; 1 repaired (1 names made User, 1 temporal states mapped); 1 quarantined"


def test_a_missing_file_and_an_empty_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(ObserverError, match="no such file"):
        read_raw_rows([tmp_path / "none.jsonl"])
    with pytest.raises(ObserverError, match="no rows"):
        read_raw_rows([write_lines(tmp_path / "empty.jsonl")])


FIELDS = st.sampled_from("user_message entities relationships name type attributes subject predicate label".split())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["User", "I", "Lisbon", "past"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(FIELDS, json_values).map(lambda row: EXTRACTION | row), max_size=4))
@settings(deadline=None, max_examples=150)
def test_every_line_ends_in_rows_or_in_quarantine(rows: list[dict[str, Any]]) -> None:
    lines = [parse_line(f"raw.jsonl:{number}", json.dumps(row).encode()) for number, row in enumerate(rows)]
    imported = sort_out(lines, to_related=False)
    places = [placed.place for placed in imported.rows] + [bad.place for bad in imported.quarantined]
    assert sorted(places) == sorted(line.place for line in lines)
    assert all(bad.reasons for bad in imported.quarantined)


@pytest.mark.parametrize("mode", ["strict", "quarantine", "related"])
def test_repairing_a_repaired_row_changes_nothing(tmp_path: Path, mode: UnknownPredicates) -> None:
    older = relation(subject="I", predicate="moved to", temporal="past", object="Ana")
    first = read_raw_rows([write_lines(tmp_path / "a.jsonl", older)], mode).rows[0].row
    again = read_raw_rows([write_lines(tmp_path / "b.jsonl", first.model_dump(mode="json"))], mode)
    assert again.rows[0].row == first and not again.repairs


def test_checking_an_older_file_hints_at_the_import(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "raw.jsonl", GRADING, relation(predicate="MOVED_TO"), relation(predicate="STARTS_AT"))
    with pytest.raises(ObserverError) as raised:
        check_files([path])
    assert f"{path}: 1 of these rows" in str(raised.value) and "observer data split" in str(raised.value)
