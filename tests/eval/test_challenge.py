"""The challenge set: large enough, every hard case in both tasks, nothing of the generator's in it."""

from __future__ import annotations

from collections import Counter

import pytest

from observer.data.synth.clauses import NAMED_SLICES, fill
from observer.data.synth.surface import SLOT, load_sections
from observer.files import read_jsonl
from observer.paths import CHALLENGE_JSONL, PROJECT_ROOT
from observer.prompts import Task, row_task
from observer.schema import RawRow, parse_row

MIN_ROWS = {Task.GRADE: 200, Task.EXTRACT: 150}


@pytest.fixture(scope="module")
def rows() -> list[RawRow]:
    parsed = [parse_row(value) for path in CHALLENGE_JSONL for _, value in read_jsonl(PROJECT_ROOT / path)]
    assert [faults for _, faults in parsed if faults] == []
    return [row for row, _ in parsed if row is not None]


@pytest.mark.parametrize("task", list(Task))
def test_there_are_enough_rows_and_ten_of_every_hard_case(rows: list[RawRow], task: Task) -> None:
    own = [row for row in rows if row_task(row) is task]
    assert len(own) >= MIN_ROWS[task]
    slices = Counter(name for row in own for name in row.slices)
    assert set(slices) == NAMED_SLICES
    assert min(slices.values()) >= 10


def test_no_turn_and_no_id_comes_twice(rows: list[RawRow]) -> None:
    assert max(Counter(row.id for row in rows).values()) == 1
    assert max(Counter(row.user_message.casefold() for row in rows).values()) == 1


def test_no_turn_is_a_frame_of_the_generator(rows: list[RawRow]) -> None:
    """Stretches of six words and more of a frame, between its slots, occur in no turn."""
    parts = {
        part.strip().casefold()
        for section in load_sections().values()
        for family in section.families
        for variant in family.variants
        for part in SLOT.split(fill(variant, dict.fromkeys(SLOT.findall(variant), "{x}")))[::2]
    }
    frames = {part for part in parts if len(part.split()) >= 6}
    said = [" ".join(row.user_message.casefold().split()) for row in rows]
    assert [(turn, frame) for turn in said for frame in frames if frame in turn] == []
