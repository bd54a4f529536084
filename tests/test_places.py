"""What is spelled in more than one place: a label or a predicate that one of them forgets is named here."""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest

from eval.metrics.grading import COSTS
from observer.data.aliases import ALIASES
from observer.data.synth.generate import LABELS_OF_A_HUNDRED
from observer.labeling.prompts import INSTRUCTIONS, LABEL_GUIDE
from observer.memory.rules import EARLIER_STAGES, ONE_AT_A_TIME, OPPOSITES, RECURRING, TIMELESS
from observer.observe.command import HELP
from observer.observe.printing import LABEL_STYLES
from observer.paths import EXTRACTION_JSONL, PROJECT_ROOT
from observer.prompts import LABEL_MEANINGS, Task
from observer.schema import (
    INVERSE_PREDICATES,
    OBJECT_TYPES,
    STORE_PREDICATES,
    SYMMETRIC_PREDICATES,
    EntityType,
    Label,
    Predicate,
    Temporal,
    extraction_json_schema,
    one_of,
)

GUIDELINE = (PROJECT_ROOT / "data" / "guideline.md").read_text(encoding="utf-8")
ROWS = (PROJECT_ROOT / EXTRACTION_JSONL).read_text(encoding="utf-8")


@pytest.mark.parametrize("place", [LABEL_MEANINGS, LABEL_GUIDE, LABEL_STYLES, LABELS_OF_A_HUNDRED])
def test_every_table_by_label_has_every_label(place: Collection[Label]) -> None:
    assert set(place) == set(Label)


def test_every_label_is_explained_where_people_read() -> None:
    assert len(COSTS) == len(Label) and all(len(row) == len(Label) for row in COSTS)
    assert one_of(Label) in HELP["grade"]
    assert all(f"**{label}**" in GUIDELINE for label in Label)


@pytest.mark.parametrize("name", [*Predicate, *EntityType, *Temporal])
def test_every_name_of_a_closed_set_is_taught(name: str) -> None:
    """To annotators in the guideline, to a labelling model in its prompt and schema, to ours in its rows."""
    assert name in GUIDELINE
    assert name in INSTRUCTIONS[Task.EXTRACT] + json.dumps(extraction_json_schema())
    assert f'"{name}"' in ROWS


@pytest.mark.parametrize(
    "table",
    [
        STORE_PREDICATES, SYMMETRIC_PREDICATES, {*INVERSE_PREDICATES, *INVERSE_PREDICATES.values()}, ONE_AT_A_TIME,
        OBJECT_TYPES, TIMELESS, RECURRING, {*OPPOSITES}.union(*OPPOSITES.values()),
        {*EARLIER_STAGES}.union(*EARLIER_STAGES.values()), {alias.predicate for alias in ALIASES.values()},
    ],
)  # fmt: skip
def test_tables_of_predicates_name_predicates_only(table: Collection[str]) -> None:
    assert set(map(str, table)) <= set(map(str, Predicate))


def test_no_older_name_is_a_predicate_itself() -> None:
    assert not ALIASES.keys() & set(map(str, Predicate))
