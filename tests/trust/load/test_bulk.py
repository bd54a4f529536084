"""Bulk: what counts as missing, as repeated and as grown; and very many rows, each out once, in flat memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from observer.observe.reading import Reader, Row
from tests.trust.conftest import Night
from tests.trust.load.bulk import BulkRun, count_rows, run_bulk, write_turns
from tests.trust.load.memory import MemoryUse

ROWS = {"grade": 100_000, "observe": 5_000}
"""Fewer to observe: these answers are long."""


def test_bulk_rows_are_counted_once_each(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = [
        {"id": "0"},
        {"id": "1", "fault": "too long"},
        {"id": "1", "fault": "bound", "truncated": True},
        {"id": "7"},
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = count_rows(out, 4)
    assert counts == {"n_out": 4, "n_missing": 2, "n_repeated": 1, "n_unknown": 1, "n_truncated": 1, "n_faults": 1}


def test_bulk_turns_are_read_whole_by_the_command_that_gets_them(tmp_path: Path) -> None:
    source = tmp_path / "turns.jsonl"
    write_turns(source, 150, seed=100)
    rows = list(Reader([str(source)]).rows())
    ids = [int(row.id) for row in rows if isinstance(row, Row)]
    assert sorted(ids) == list(range(150)) and ids[64:] == sorted(ids[64:])
    turns = [json.loads(line)["messages"] for line in source.read_text().splitlines()]
    sizes = [sum(len(message["content"]) for message in messages) for messages in turns]
    assert min(sizes[:64]) >= max(sizes[64:])
    assert len({row.exchange.model_dump_json(exclude={"id"}) for row in rows if isinstance(row, Row)}) == 150


def test_a_bulk_run_passes_with_truncated_answers_that_its_exit_code_tells_of_and_with_no_other_fault() -> None:
    memory = MemoryUse(600, 100.0, 102.0, 103.0, mb_per_min=0.1, low=0.0, high=0.2)
    whole = BulkRun(600.0, 6000, 6000, 0, 0, 0, 0, 0, exit_code=0, memory=memory)
    assert whole.passed and whole.most_bytes_per_row == pytest.approx(0.2e6 / 600)
    assert replace(whole, n_truncated=4, exit_code=1).passed
    assert not replace(whole, n_truncated=4).passed  # the command did not tell
    assert not replace(whole, n_faults=1, exit_code=1).passed
    assert not replace(whole, exit_code=1).passed
    assert not replace(whole, n_missing=1).passed and not replace(whole, n_repeated=1).passed
    assert not replace(whole, memory=replace(memory, high=0.4)).passed


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("task", ROWS)
def test_every_row_comes_out_once_and_memory_does_not_grow(task: str, tmp_path: Path, night: Night) -> None:
    """A `--scale` whose run takes less than two minutes is too short to say that memory does not grow."""
    run = run_bulk(task, max(1, round(ROWS[task] * night.scale)), night.model, tmp_path)
    night.record(command=f"observer {task}", rows_in=run.n_in, rows_out=run.n_out, missing=run.n_missing)
    night.record(twice=run.n_repeated, cut_at_the_bound=run.n_truncated, faults=run.n_faults)
    night.record(a_second=f"{run.rows_per_s:.1f}", minutes=f"{run.seconds / 60:.1f}", **run.memory.figures)
    most = run.most_bytes_per_row
    night.record(bytes_a_row="too short" if most is None else f"at most {most:.0f}")
    assert run.passed, run
