"""The runner that kills trainings: what it sees, how it draws and what it finds; and eight points of the real thing."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from observer.files import append_whole
from tests.trust.faults.compare import artefacts, differences, leftovers
from tests.trust.faults.fault_case import SIGNALS, Aim, Cut, Drawer, Outcome, Uncut, run_point
from tests.trust.faults.inject import read_ledger, summarize, uncut_of
from tests.trust.faults.watch import LISTENS, LOGS, SAVES, Phase, Watch, is_over, phases_of
from tests.trust.faults.workplace import Workplace

EVENTS = {
    LISTENS: 0.0, "data done": 4.0, LOGS: 5.0, "checkpoint 1 begins": 6.0, "checkpoint 1 is whole": 6.5, SAVES: 9.0,
    "train done": 9.5, "merge done": 10.0, "model card done": 12.0,
}  # fmt: skip
PHASES = {
    "data preparation": [Phase(LISTENS, "data done", 4.0)],
    "base loading": [Phase("data done", LOGS, 1.0)],
    "training": [Phase(LOGS, SAVES, 4.0)],
    "adapter save": [Phase(SAVES, "train done", 0.5)],
    "merge": [Phase("train done", "merge done", 0.5)],
    "model card": [Phase("merge done", "model card done", 2.0)],
    "checkpoints": [Phase("checkpoint 1 begins", "checkpoint 1 is whole", 0.5)],
}


class Here:
    """This process, in place of one that trains."""

    pid = os.getpid()

    def poll(self) -> None:
        return None


def test_stages_are_found_in_what_an_uncut_run_printed_and_left() -> None:
    assert phases_of(EVENTS) == PHASES
    assert is_over(EVENTS, PHASES) and not is_over({LISTENS: 0.0, "merge done": 1.0}, PHASES)


def test_a_process_is_seen_by_its_lines_and_its_files(tmp_path: Path) -> None:
    root, stdout = tmp_path / "run", tmp_path / "out.txt"
    old, new = root / "checkpoints" / "checkpoint-3", root / "checkpoints" / "checkpoint-6"
    old.mkdir(parents=True)
    (root / "training.log").write_text("adapter of step 3 saved\n")  # by a process before this one
    watch = Watch(Here(), root, stdout)
    watch.look()
    assert set(watch.events) <= {LISTENS} and watch.last_lines() == ""
    stdout.write_text("run        x\ndata: done in 0.1 s\ntrain: done before on the same inputs, skipped\ngguf q8")
    (root / "training.log").write_text("adapter of step 3 saved\nresuming from checkpoint-3\n")
    new.mkdir()
    watch.look()
    assert set(watch.events) - {LISTENS} == {"data done", "train done", LOGS, "checkpoint 1 begins"}
    (new / "trainer_state.json").touch()
    watch.look()
    assert watch.place() == "checkpoint 1 is whole" and watch.last_lines() == "gguf q8 | resuming from checkpoint-3"


def test_stages_and_signals_come_equally_often_and_a_seed_gives_the_same_points() -> None:
    drawer = Drawer(7, [*PHASES], Uncut(PHASES, {}))
    points = [drawer.aims(number, 0) for number in range(42)]
    assert points == [Drawer(7, [*PHASES], Uncut(PHASES, {})).aims(number, 0) for number in range(42)]
    assert points != [Drawer(8, [*PHASES], Uncut(PHASES, {})).aims(number, 0) for number in range(42)]
    assert set(Counter(aims[0].stage for aims in points).values()) == {6}
    assert set(Counter(aims[0].signal for aims in points).values()) == {14}
    assert len({(aims[0].stage, aims[0].signal) for aims in points}) == 21, "every signal in every stage"
    assert sum(len(aims) == 2 for aims in points) == 8
    for aim in (aim for aims in points for aim in aims):
        assert 0 <= aim.delay_s <= PHASES[aim.stage][0].seconds


def test_what_two_equal_runs_leave_is_equal_and_every_other_difference_is_named(tmp_path: Path) -> None:
    def leave(name: str, speed: float, loss: float) -> dict[str, str]:
        root = tmp_path / name / "run"
        for path in (root / "reports", root / "gguf", root / "checkpoints" / f"checkpoint-{name}"):
            path.mkdir(parents=True)
        (root / "gguf" / "x-f16.gguf").write_bytes(b"GGUF")
        (root / "reports" / "summary.md").write_text(f"{speed} rows/s")
        report = {"date": name, "grading": {"accuracy": 0.5}, "examples_per_s": {"grade": speed}}
        (root / "reports" / "evaluation-f16.json").write_text(json.dumps(report))
        (root / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "elapsed_s": speed}) + "\n")
        outputs = {"reports/summary.md": name}
        stage = {"inputs": name, "outputs": outputs, "notes": {"seconds": speed}}
        (root / "manifest.json").write_text(json.dumps({"environment": {}, "stages": {"evaluate": stage}}))
        return artefacts(root, tmp_path / name / "cache")

    uncut = leave("a", 1.0, 0.25)
    assert differences(uncut, leave("b", 2.0, 0.25)) == []
    assert differences(uncut, leave("c", 1.0, 0.2500000001)) == ["metrics.jsonl: differs"]
    root = tmp_path / "b" / "run"
    (root / "gguf" / "x-f16.gguf").unlink()
    (root / "loss.png").touch()
    (root / ".x.123.tmp").touch()
    found = artefacts(root, tmp_path / "none")
    assert "gguf/x-f16.gguf: missing" in differences(uncut, found)
    assert "loss.png: not in the uncut run" in differences(uncut, found)
    assert leftovers(root) == [str(root / ".x.123.tmp")]


def test_a_point_that_is_done_is_read_back_and_a_cut_line_of_the_ledger_is_not(tmp_path: Path) -> None:
    from dataclasses import asdict

    aim = Aim("merge", "SIGINT", "train done", "merge done", 0.2)
    cut = Cut(aim, "train done", "merge: done", 1, "error: x", "exit code 1 in place of 130")
    lost = Outcome(0, [cut], 0, 1, "", ["metrics.jsonl: differs"], [], 9.5)
    path = tmp_path / "points.jsonl"
    with path.open("wb") as stream:
        append_whole(stream.fileno(), json.dumps(asdict(lost)).encode() + b'\n{"number": 1, "cu')
    assert read_ledger(path) == {0: lost}
    assert lost.faults == ["SIGINT after 'train done': exit code 1 in place of 130", "metrics.jsonl: differs"]
    assert "1 points in 1 stages, 0 of them cut twice (1 SIGINT): 0 ended" in summarize([lost])


@pytest.mark.slow
def test_runs_that_are_killed_in_every_stage_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    stages = [
        "data preparation",
        "base loading",
        "training",
        "checkpoints",
        "merge",
        "gguf f16",
        "gguf q8_0",
        "evaluate",
    ]
    workplace = Workplace(tmp_path / "work", ("export.quantizations=[q8_0]", "training.num_train_epochs=1"))
    workplace.prepare()
    cores = sorted(os.sched_getaffinity(0))

    def pin() -> None:  # a thread's children run where it does: no two runs wait for one another
        os.sched_setaffinity(0, {cores.pop()})

    with ThreadPoolExecutor(min(2, len(cores)), initializer=pin) as pool:
        uncut = pool.submit(uncut_of, workplace).result()
        drawer = Drawer(1, stages, uncut)
        outcomes = [*pool.map(lambda number: run_point(number, drawer, workplace), range(len(stages)))]
    assert {outcome.number: outcome.faults for outcome in outcomes if outcome.faults} == {}
    assert {cut.aim.signal for outcome in outcomes for cut in outcome.cuts} == set(SIGNALS)
