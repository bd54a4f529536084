"""The sweep: grids, the time to a loss, and that a failed point is a line of the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks.training.grid import (
    Outcome,
    Point,
    by_time_to,
    default_target,
    elapsed,
    parse_grid,
    time_to,
    to_table,
)
from eval.benchmarks.training.sweep import main
from observer.errors import ObserverError
from tests.support.tiny_runs import write_tiny_run


def outcome(name: str, curve: list[tuple[float, float]], error: str | None = None) -> Outcome:
    return Outcome(Point(name, {"training.learning_rate": name}), error, 20.0, 8, curve, {}, {})


def test_a_grid_crosses_its_axes_and_keeps_lists_whole() -> None:
    points = parse_grid(["training.learning_rate=3e-4,6e-4", "lora.target_modules=[q_proj,v_proj],[down_proj]"])
    assert [point.overrides for point in points] == [
        ["training.learning_rate=3e-4", "lora.target_modules=[q_proj,v_proj]"],
        ["training.learning_rate=3e-4", "lora.target_modules=[down_proj]"],
        ["training.learning_rate=6e-4", "lora.target_modules=[q_proj,v_proj]"],
        ["training.learning_rate=6e-4", "lora.target_modules=[down_proj]"],
    ]
    assert len({point.name for point in points}) == 4
    assert parse_grid(["lora.r=8"])[0].name == "r-8"


def test_keys_joined_by_colons_change_together() -> None:
    points = parse_grid(["lora.r:lora.lora_alpha=16:32,32:64", "training.learning_rate=3e-4,6e-4"])
    assert [point.settings["lora.lora_alpha"] for point in points] == ["32", "32", "64", "64"]
    assert points[0].overrides == ["lora.r=16", "lora.lora_alpha=32", "training.learning_rate=3e-4"]
    with pytest.raises(ObserverError, match=r"16,32: .*change together[\s\S]*lora.r: given twice"):
        parse_grid(["lora.r:lora.lora_alpha=16,32", "lora.r=8"])


def test_every_fault_of_a_grid_is_named() -> None:
    with pytest.raises(ObserverError, match=r"r=8: `section.key[\s\S]*lora.r=8,: `section.key[\s\S]*given twice"):
        parse_grid(["r=8", "lora.r=8,", "lora.r=16"])


@pytest.mark.parametrize(
    ("target", "seconds"),
    [
        (1.5, 15.0),  # half-way from 2.0 at 10 s to 1.0 at 20 s
        (1.0, 20.0),
        (2.5, 10.0),  # below it at the first evaluation: that one's time
        (0.5, None),
    ],
)
def test_the_time_to_a_loss_lies_on_the_line_between_two_evaluations(target: float, seconds: float | None) -> None:
    assert time_to([(10.0, 2.0), (20.0, 1.0), (30.0, 1.2)], target) == seconds


def test_the_clock_of_a_resumed_run_goes_on() -> None:
    records = [{"step": 1, "elapsed_s": 2.0}, {"step": 2, "elapsed_s": 4.0}, {"step": 2, "eval_loss": 1.0}]
    assert elapsed([*records, {"step": 3, "elapsed_s": 1.5}]) == {1: 2.0, 2: 4.0, 3: 5.5}


def test_points_are_sorted_by_time_to_target_then_loss_and_the_failed_come_last() -> None:
    slow, fast = outcome("slow", [(30.0, 0.5)]), outcome("fast", [(10.0, 0.5)])
    far, near = outcome("far", [(5.0, 3.0)]), outcome("near", [(5.0, 1.0)])
    broken = outcome("broken", [(1.0, 0.1)], error="cpu: out of memory")
    assert by_time_to([broken, far, slow, near, fast], 0.6) == [fast, slow, near, far, broken]
    assert default_target([slow, fast, far, broken]) == 0.5
    assert "- `broken` failed: cpu: out of memory" in to_table([fast, broken], 0.6)


@pytest.mark.slow
def test_a_sweep_trains_its_points_and_goes_on_past_a_failure(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_tiny_run(tmp_path, tiny_model)
    root = tmp_path / "outputs" / "sweep-tiny"
    root.mkdir(parents=True)
    (root / "learning_rate-1e-2").write_text("a file where the run's folder should be")
    arguments = ["--config", str(config), "--grid", "training.learning_rate=1e-2,5e-3", "--out", str(tmp_path)]
    assert main([*arguments, "--rows", "16", "--set", "training.eval_steps=2"]) == 0
    assert len((root / "train-16.jsonl").read_text(encoding="utf-8").splitlines()) == 16
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line["failed"]) == ["learning_rate-1e-2"], line["failed"]
    assert "a file is in the way of a folder" in line["failed"]["learning_rate-1e-2"]
    assert line["best"] == "learning_rate-5e-3"
    assert line["time_to_target_s"] > 0
    assert [path.parent.name for path in root.glob("*/adapter")] == ["learning_rate-5e-3"]
    assert not list(root.glob("*/merged"))
    assert "failed: " in (tmp_path / "sweep-tiny.md").read_text(encoding="utf-8")
