"""Runs of train_sft.py that are cut at random moments of every stage and resumed; and what is seen of a run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.trust.conftest import Night
from tests.trust.faults.fault_case import EXIT_CODES, Uncut, draw, run_case, uncut_of
from tests.trust.runs_compared import artefacts, differences, leftovers
from tests.trust.watch import LISTENS, LOGS, SAVES, Phase, Watch, is_over, phases_of
from tests.trust.workplace import SMALL, Workplace

STAGES = [
    "data preparation", "base loading", "training", "adapter save", "merge", "gguf f16", "imatrix", "gguf q8_0",
    "gguf q4_k_m", "modelfiles", "evaluate", "model card", "checkpoints",
]  # fmt: skip
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


def test_moments_are_drawn_within_their_phase_and_a_seed_gives_the_same_ones() -> None:
    def drawn(seed: int, scale: float = 1) -> list[list[tuple[str, Phase, float]]]:
        aims = [draw(stage, kind, PHASES, random.Random(f"{seed} {stage} {kind}"), scale)
                for stage in PHASES for kind in EXIT_CODES]  # fmt: skip
        return [[(aim.signal, aim.phase, aim.delay_s) for aim in case] for case in aims]

    cases = drawn(7)
    assert cases == drawn(7) and cases != drawn(8)
    assert {len(case) for case in cases} == {1, 2}
    assert [case[0][:2] for case in cases] == [(kind, PHASES[stage][0]) for stage in PHASES for kind in EXIT_CODES]
    assert all(0 <= delay_s <= phase.seconds for case in cases for _, phase, delay_s in case)
    assert [case[0][2] / 2 for case in cases] == [case[0][2] for case in drawn(7, scale=0.5)]


def test_what_two_equal_runs_leave_is_equal_and_every_other_difference_is_named(tmp_path: Path) -> None:
    def leave(name: str, speed: float, loss: float) -> dict[str, Any]:
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
    unlike = "metrics.jsonl: 1 of 2 values, first [0].loss: 0.25, then 0.2500000001"
    assert differences(uncut, leave("c", 1.0, 0.2500000001)) == [unlike]
    root = tmp_path / "b" / "run"
    (root / "gguf" / "x-f16.gguf").unlink()
    (root / "loss.png").touch()
    (root / ".x.123.tmp").touch()
    found = artefacts(root, tmp_path / "none")
    assert "gguf/x-f16.gguf: missing" in differences(uncut, found)
    assert "loss.png: not expected" in differences(uncut, found)
    assert leftovers(root) == [str(root / ".x.123.tmp")]


@pytest.fixture(scope="session")
def core() -> Iterator[None]:
    """What this process and the runs that it starts have: threads that share one core wait for one another."""
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        os.sched_setaffinity(0, {cores[worker % len(cores)]})
        yield
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="session")
def small_run(core: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Uncut]:
    workplace = Workplace(tmp_path_factory.mktemp("faults"), SMALL)
    workplace.prepare()
    uncut = uncut_of(workplace)
    assert [*uncut.phases] == STAGES
    return workplace, uncut


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", EXIT_CODES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_cut_ends_as_if_it_had_not_been(
    stage: str, kind: str, small_run: tuple[Workplace, Uncut], night: Night
) -> None:
    found = run_case(stage, kind, night.seed, *small_run)
    night.record(
        stage=stage,
        cut=", then ".join(f"{cut.signal} after {cut.place!r}" for cut in found.cuts),
        redrawn=found.n_redrawn,
        resumed=found.n_resumes,
        artefacts=len(small_run[1].artefacts),
    )
    assert found.faults == []


@pytest.mark.slow
def test_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages of those above, which only the nightly set has time for."""
    stages = ["training", "gguf q8_0"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workplace = Workplace(tmp_path / "work", (*SMALL, "export.quantizations=[q8_0]", "training.num_train_epochs=1"))
    workplace.prepare()
    cores = sorted(os.sched_getaffinity(0))

    def pin() -> None:  # a thread's children run where it does: no two runs wait for one another
        os.sched_setaffinity(0, {cores.pop()})

    with ThreadPoolExecutor(min(2, len(cores)), initializer=pin) as pool:
        uncut = pool.submit(uncut_of, workplace).result()
        outcomes = [*pool.map(lambda stage, kind: run_case(stage, kind, 1, workplace, uncut), stages, EXIT_CODES)]
    assert [outcome.faults for outcome in outcomes if outcome.faults] == []
