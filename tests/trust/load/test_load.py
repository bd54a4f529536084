"""The load test: what counts as lost, as swapped and as flat, and that the real client loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from observer.observation import GradeResult, Observation, ObservedEntity
from observer.observe.reading import Reader, Row
from observer.paths import PROJECT_ROOT
from observer.schema import EntityType, Label
from tests.trust.load.account import Ledger
from tests.trust.load.bulk import BulkRun, count_rows, write_turns
from tests.trust.load.load import main
from tests.trust.load.memory import MemoryUse, memory_use


def observed(label: Label, names: Sequence[str] = (), share: float = 0.9, id: str | None = None) -> Observation:
    return Observation(
        task="observe",
        grade=GradeResult(label=label, probabilities={label: share}, confidence=share),
        entities=[ObservedEntity(name=name, type=EntityType.PERSON, is_grounded=True) for name in names],
        relationships=[],
        redactions=[],
        model="x",
        id=id,
    )


ANA, BO = observed(Label.STORE, ["Ana"]), observed(Label.STORE, ["Bo"])
NOTHING = observed(Label.DISCARD)


def test_the_account_tells_lost_repeated_foreign_different_and_moved_answers_apart() -> None:
    ledger = Ledger([ANA, BO, NOTHING], n_callers=2, capacity=20)
    numbers = [ledger.ask()[0] for _ in range(9)]
    assert numbers == list(range(9))  # turns 0 1 2, three times over
    ledger.answered(0, 0, 0.1, observed(Label.STORE, ["Ana"], id="0"))  # right
    ledger.answered(1, 0, 0.2, observed(Label.STORE, ["Ana"], id="1"))  # the answer of turn 0
    ledger.answered(2, 0, 0.3, observed(Label.STORE, ["Cy"], id="2"))  # nobody's answer
    ledger.answered(3, 1, 0.4, observed(Label.STORE, ["Ana"], share=0.8, id="3"))  # right, further than rounding
    ledger.answered(4, 1, 0.5, observed(Label.STORE, ["Bo"], id="3"))  # came to another request
    ledger.answered(5, 1, 0.6, observed(Label.DISCARD, share=0.91, id="5"))  # right, within rounding
    ledger.answered(5, 1, 0.6, observed(Label.DISCARD, id="5"))  # again
    ledger.answered(6, 1, 0.7, observed(Label.DISCARD, id="6"))  # the words of turn 2, but many turns have these
    ledger.failed(7, TimeoutError("no answer"))
    account = ledger.account(seconds=2.0)  # 8 was never answered
    counts = (account.n_asked, account.n_answered, account.n_lost, account.n_repeated, account.n_errors)
    assert counts == (9, 7, 1, 1, 1)
    assert (account.n_foreign, account.n_different, account.n_moved) == (2, 2, 1)
    assert account.largest_move == pytest.approx(0.1)
    assert account.errors == {"TimeoutError: no answer": 1}
    assert (account.requests_per_s, account.fewest_by_a_caller, account.most_by_a_caller) == (3.5, 3, 5)
    assert (
        account.latency
        and account.latency.p50_ms == pytest.approx(400)
        and account.latency.max_ms == pytest.approx(700)
    )
    assert not account.is_whole


def test_the_ledger_ends_the_part_before_it_is_full() -> None:
    ledger = Ledger([ANA], n_callers=2, capacity=4)
    for _ in range(2):
        ledger.ask()
    assert ledger.is_full  # the two callers may each have asked once more by the time they see it


@pytest.mark.parametrize(
    ("mb_a_minute", "step_mb", "is_flat"),
    [(0.0, 0.0, True), (0.5, 0.0, True), (1.5, 0.0, False), (0.0, 40.0, True), (-3.0, 0.0, True)],
)
def test_memory_is_flat_when_its_slope_is_and_a_single_step_is_none(
    mb_a_minute: float, step_mb: float, is_flat: bool
) -> None:
    samples = [(second, 100 + mb_a_minute * second / 60 + step_mb * (second > 500)) for second in range(600)]
    samples[:60] = [(second, 50 + 0.8 * second) for second in range(60)]  # the warm-up does not count
    use = memory_use(samples)
    assert use.is_flat == is_flat
    assert use.mb_per_min == pytest.approx(mb_a_minute, abs=0.05)
    assert (use.n_samples, use.start_mb) == (600, 50)


def test_memory_of_a_few_seconds_is_not_called_flat() -> None:
    use = memory_use([(0, 100), (1, 100), (2, 100)])
    assert use.mb_per_min is None and not use.is_flat


@pytest.mark.skipif(sys.platform != "linux", reason="the caches are glibc's")
@pytest.mark.parametrize(("tunables", "has_caches"), [(None, "False"), ("glibc.malloc.tcache_count=7", "True")])
def test_memory_is_measured_without_the_caches_of_threads_unless_the_environment_says_how_many(
    tunables: str | None, has_caches: str
) -> None:
    code = (
        "from tests.trust.load.memory import has_thread_caches, restart_without_thread_caches as restart\n"
        "restart(); print(has_thread_caches())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables:
        environment["GLIBC_TUNABLES"] = tunables
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == [has_caches]


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
    assert count_rows(tmp_path / "none.jsonl", 2)["n_missing"] == 2
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, row in enumerate(rows):
        (parts / f"part-{number:05}.jsonl").write_text(json.dumps(row) + "\n")
    (parts / "settings.json").write_text("{}")
    assert count_rows(parts, 4) == counts


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
    whole = BulkRun("observe", "observer observe", 600.0, 6000, 6000, 0, 0, 0, 0, 0, exit_code=0, memory=memory)
    assert whole.passed and whole.most_bytes_per_row == pytest.approx(0.2e6 / 600)
    assert replace(whole, n_truncated=4, exit_code=1).passed
    assert not replace(whole, n_truncated=4).passed  # the command did not tell
    assert not replace(whole, n_faults=1, exit_code=1).passed
    assert not replace(whole, exit_code=1).passed
    assert not replace(whole, n_missing=1).passed and not replace(whole, n_repeated=1).passed
    assert not replace(whole, memory=replace(memory, high=0.4)).passed


@pytest.mark.slow
def test_callers_in_every_part_get_their_own_answers(
    nano_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seconds are too short for memory, so the part fails, and says why; what was asked is whole."""
    few = ["--minutes", "0.05", "--server-minutes", "0.05", "--callers", "8", "--turns", "4", "--threads", "1"]
    assert main([*few, "--model", str(nano_gguf), "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["summary"] in capsys.readouterr().out and not found["passed"]
    parts = found["details"]["parts"]
    assert [part["name"] for part in parts] == ["threads", "tasks", "server threads", "server tasks"]
    for part in parts:
        account = part["account"]
        assert account["n_asked"] == account["n_answered"] > 0, part["name"]
        wrong = ("n_lost", "n_repeated", "n_errors", "n_foreign", "n_different")
        assert [account[name] for name in wrong] == [0] * 5, part["name"]
