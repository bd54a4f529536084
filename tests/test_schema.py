"""The closed sets, what a row must be, its compact JSON, and the forms that are compared when scoring."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer.schema import (
    ATTRIBUTE_KEYS,
    OBJECT_TYPES,
    PREDICATES_BY_GROUP,
    SYMMETRIC_PREDICATES,
    Entity,
    EntityType,
    Extraction,
    ExtractionRow,
    GradingRow,
    Label,
    Predicate,
    Relationship,
    Temporal,
    can_relate,
    canonical_triple,
    extraction_grammar,
    extraction_json_schema,
    highest_label,
    parse_row,
)

GRADING: dict[str, Any] = {"user_message": "hi", "assistant_message": "hello", "label": "DISCARD"}
EXTRACTION: dict[str, Any] = {
    "user_message": "my sister Ana works at Siemens",
    "assistant_message": "",
    "entities": [{"name": "Ana", "type": "Person"}, {"name": "Siemens", "type": "Organization"}],
    "relationships": [{"subject": "Ana", "predicate": "WORKS_AT", "object": "Siemens", "temporal": "ongoing"}],
}

names = st.text(min_size=1, max_size=20)
entities = st.builds(
    Entity,
    name=names,
    type=st.sampled_from(EntityType),
    attributes=st.dictionaries(st.sampled_from(ATTRIBUTE_KEYS), st.text(max_size=10), max_size=2),
)
relationships = st.builds(
    Relationship,
    subject=names,
    predicate=st.sampled_from(Predicate),
    object=names,
    temporal=st.sampled_from(Temporal),
    when=st.none() | st.text(min_size=1, max_size=10),
)
extractions = st.builds(
    Extraction, entities=st.lists(entities, max_size=3), relationships=st.lists(relationships, max_size=3)
)


def faults_of(row: dict[str, Any]) -> list[str]:
    parsed, faults = parse_row(row)
    assert (parsed is None) == bool(faults)
    return faults


def test_predicates_are_the_groups_in_order_without_repeats() -> None:
    flat = [name for group in PREDICATES_BY_GROUP.values() for name in group]
    assert [str(predicate) for predicate in Predicate] == flat
    assert len(flat) == len(set(flat)) == 41
    assert all(name == name.upper() for name in flat)


def test_objects_are_of_known_types_and_no_one_is_the_end_of_everything() -> None:
    assert {kind for kinds in OBJECT_TYPES.values() for kind in kinds.split()} <= set(EntityType)
    assert can_relate(EntityType.PERSON, "WORKS_AT", EntityType.ORGANIZATION)
    assert not can_relate(EntityType.PERSON, "WORKS_AT", EntityType.PERSON)
    assert not can_relate(EntityType.ORGANIZATION, "WORKS_AT", EntityType.ORGANIZATION)
    assert can_relate(EntityType.PLACE, "LOCATED_IN", EntityType.PLACE)


def test_rows_of_both_tasks_parse() -> None:
    assert isinstance(parse_row(GRADING)[0], GradingRow)
    assert isinstance(parse_row(EXTRACTION)[0], ExtractionRow)
    context = {"context": [{"role": "user", "content": "earlier"}], "slices": ["negation"], "id": "x", "seed": 1}
    assert parse_row(GRADING | context)[1] == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (GRADING | {"label": "MAYBE"}, "label: unknown value 'MAYBE'; allowed: DISCARD, STORE or IMPORTANT"),
        (GRADING | {"lable": "x"}, "lable: unknown field"),
        (GRADING | {"confidence": 1.5}, "confidence: input should be less than or equal to 1, found '1.5'"),
        ({"label": "STORE", "assistant_message": ""}, "user_message: missing"),
        (GRADING | {"context": [{"role": "bot", "content": ""}]}, "context.0.role: input should be 'user' or"),
        (EXTRACTION | {"entities": []}, "relationship endpoint 'Ana' is not among the entities; add it there"),
        (EXTRACTION | {"entities": EXTRACTION["entities"] * 2}, "entity 'Ana' appears twice"),
        (EXTRACTION | {"relationships": "none"}, "relationships: input should be a valid list, found 'none'"),
        ({**GRADING, "label": ["STORE"]}, "label: "),
    ],
)
def test_a_bad_row_is_told_where_and_what(row: dict[str, Any], fault: str) -> None:
    assert any(found.startswith(fault) for found in faults_of(row)), faults_of(row)


def test_every_fault_of_a_row_is_told_in_one_pass() -> None:
    relation = EXTRACTION["relationships"][0] | {"predicate": "likes", "temporal": "now"}
    faults = faults_of({"entities": [{"name": "", "type": "Robot"}], "relationships": [relation], "extra": 1})
    places = [fault.partition(":")[0] for fault in faults]
    assert sorted(places) == sorted(
        "user_message assistant_message entities.0.name entities.0.type relationships.0.predicate "
        "relationships.0.temporal extra".split()
    )


def test_long_names_and_unknown_attributes_are_faults() -> None:
    entity = Entity(name="one two three four five six", type=EntityType.CONCEPT, attributes={"colour": "red"})
    faults = Extraction(entities=[entity]).faults()
    assert faults[0] == "entity name 'one two three four five six' has more than 5 words"
    assert faults[1].startswith("unknown attribute 'colour'; allowed: role, age")


def test_compact_json_leaves_out_what_is_empty_and_keeps_the_order() -> None:
    row, _ = parse_row(EXTRACTION)
    assert isinstance(row, ExtractionRow)
    assert row.extraction.to_compact_json() == (
        '{"entities":[{"name":"Ana","type":"Person"},{"name":"Siemens","type":"Organization"}],'
        '"relationships":[{"subject":"Ana","predicate":"WORKS_AT","object":"Siemens","temporal":"ongoing"}]}'
    )
    assert Extraction().to_compact_json() == '{"entities":[],"relationships":[]}'


@given(extractions)
def test_compact_json_reads_back_as_the_same_extraction(extraction: Extraction) -> None:
    assert Extraction.model_validate_json(extraction.to_compact_json()) == extraction


@given(extractions)
@settings(max_examples=50)
def test_compact_json_has_the_keys_of_the_json_schema_in_order(extraction: Extraction) -> None:
    schema = extraction_json_schema()["properties"]
    answer = json.loads(extraction.to_compact_json())
    for name in ("entities", "relationships"):
        allowed = list(schema[name]["items"]["properties"])
        for item in answer[name]:
            assert list(item) == [key for key in allowed if key in item]


def test_the_json_schema_is_bounded_as_the_grammar_is() -> None:
    lists, grammar = extraction_json_schema()["properties"], extraction_grammar()
    assert {name: value["maxItems"] for name, value in lists.items()} == {"entities": 12, "relationships": 12}
    assert "{0,11}" in grammar, "one, and up to eleven more"
    assert f"char{{1,{lists['entities']['items']['properties']['name']['maxLength']}}}" in grammar


@pytest.mark.parametrize(
    ("predicates", "label"),
    [
        ([], Label.DISCARD),
        (["LIKES"], Label.STORE),
        (["LIKES", "VISITS"], Label.STORE),
        (["LIKES", "WORKS_AT"], Label.IMPORTANT),
        (["HAS_CONDITION"], Label.IMPORTANT),
    ],
)
def test_the_highest_label_wins(predicates: list[str], label: Label) -> None:
    assert highest_label(predicates) == label


@pytest.mark.parametrize(
    ("triple", "canonical"),
    [
        (("User", "WORKS_AT", "SIEMENS"), ("user", "WORKS_AT", "siemens")),
        (("Ana", "MARRIED_TO", "User"), ("user", "MARRIED_TO", "ana")),
        (("User", "MARRIED_TO", "Ana"), ("user", "MARRIED_TO", "ana")),
        (("Zoe", "SIBLING_OF", "Ana"), ("ana", "SIBLING_OF", "zoe")),
        (("User", "CHILD_OF", "Ana"), ("ana", "PARENT_OF", "user")),
        (("Zoe", "WORKS_AT", "Acme"), ("zoe", "WORKS_AT", "acme")),
    ],
)
def test_canonical_triples(triple: tuple[str, str, str], canonical: tuple[str, str, str]) -> None:
    assert canonical_triple(*triple) == canonical


@given(names, st.sampled_from(Predicate), names)
def test_canonical_form_is_stable_and_ignores_the_side_of_symmetric_predicates(
    subject: str, predicate: Predicate, obj: str
) -> None:
    once = canonical_triple(subject, str(predicate), obj)
    assert canonical_triple(*once) == once
    if predicate in SYMMETRIC_PREDICATES:
        assert canonical_triple(obj, str(predicate), subject) == once
