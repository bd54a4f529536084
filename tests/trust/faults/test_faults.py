"""Runs of train_sft.py that are cut at random moments of every stage and resumed; and what is seen of a run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.trust.conftest import Night
from tests.trust.faults.fault_case import EXIT_CODES, Aim, Uncut, aim_at, drawn, run_case, uncut_of
from tests.trust.runs_compared import artefacts, differences, leftovers
from tests.trust.watch import LISTENS, LOGS, SAVES, Phase, Watch, last_phase, phases_of
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


def test_stages_are_found_in_what_an_uncut_run_printed_and_left() -> None:
    assert phases_of(EVENTS) == PHASES
    assert last_phase(PHASES).ends == "model card done"


def test_a_process_is_seen_by_its_lines_and_its_files(tmp_path: Path) -> None:
    root, stdout = tmp_path / "run", tmp_path / "out.txt"
    old, new = root / "checkpoints" / "checkpoint-3", root / "checkpoints" / "checkpoint-6"
    old.mkdir(parents=True)
    (root / "training.log").write_text("adapter of step 3 saved\n")  # by a process before this one
    watch = Watch(os.getpid(), root, stdout)
    watch.look()
    assert set(watch.events) <= {LISTENS}
    stdout.write_text("run        x\ndata: done in 0.1 s\ntrain: done before on the same inputs, skipped\ngguf q8")
    (root / "training.log").write_text("adapter of step 3 saved\nresuming from checkpoint-3\n")
    new.mkdir()
    watch.look()
    assert set(watch.events) - {LISTENS} == {"data done", "train done", LOGS, "checkpoint 1 begins"}
    (new / "trainer_state.json").touch()
    watch.look()
    assert watch.place() == "checkpoint 1 is whole"


def test_moments_are_drawn_within_their_phase_and_a_seed_gives_the_same_ones() -> None:
    def cases(seed: int, scale: float = 1) -> list[list[tuple[str, str, Aim]]]:
        rng = random.Random(seed)
        drawn_cuts = [drawn(stage, kind, [*PHASES], rng) for stage in PHASES for kind in EXIT_CODES]
        return [[(*cut, aim_at(*cut, PHASES, rng, scale)) for cut in cuts] for cuts in drawn_cuts]

    found = cases(7)
    assert found == cases(7) and found != cases(8)
    assert {len(case) for case in found} == {1, 2}
    assert [case[0][:2] for case in found] == [(stage, kind) for stage in PHASES for kind in EXIT_CODES]
    for (stage, kind, aim), (_, _, sooner) in zip(chain(*found), chain(*cases(7, scale=0.5)), strict=True):
        assert aim.signal == kind and aim.phase in PHASES[stage]
        assert 0 <= aim.delay_s <= aim.phase.seconds and sooner.delay_s == aim.delay_s / 2


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


@pytest.fixture(scope="module")
def core() -> Iterator[None]:
    """What this process and the runs that it starts have: threads that share one core wait for one another."""
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        os.sched_setaffinity(0, {cores[worker % len(cores)]})
        yield
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
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
    cuts = drawn(stage, kind, STAGES, random.Random(f"{night.seed} {stage} {kind}"))
    night.record(stage=stage, artefacts=len(small_run[1].artefacts))
    night.record(cut=", then ".join(run_case(cuts, night.seed, *small_run)))


@pytest.mark.slow
def test_a_run_that_is_killed_and_then_stopped_ends_as_if_it_had_not_been(core: None, tmp_path: Path) -> None:
    """Two stages of those above, which only the nightly set has time for."""
    workplace = Workplace(tmp_path, (*SMALL, "export.quantizations=[q8_0]", "training.num_train_epochs=1"))
    workplace.prepare()
    cuts = [("training", "SIGKILL"), ("gguf q8_0", "SIGINT")]
    assert len(run_case(cuts, 1, workplace, uncut_of(workplace))) == len(cuts)
