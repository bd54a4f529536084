"""`observer clean` frees what was chosen, shows it first, and never takes what cannot be made again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from observer.cli import main
from observer.config import Config, load_config
from observer.paths import RunPaths
from tests.runs.test_locks import held_by_another
from tests.support.small_disk import small_disk

KEPT = (
    "adapter/adapter_model.safetensors", "reports/summary.md", "gguf/run-f16.gguf", "gguf/run-q8_0.gguf",
    "gguf/run-adapter.gguf", "gguf/README.md", "gguf/Modelfile-q8_0", "Modelfile", "manifest.json", "metrics.jsonl",
    "training.log", "loss.png", "config.yaml",
)  # fmt: skip
CHOSEN = {
    "checkpoints": ("checkpoints/checkpoint-3/optimizer.pt", "checkpoints/inputs.json"),
    "merged": ("merged/model.safetensors",),
    "intermediates": (
        "gguf/run-bf16.gguf",
        "run-imatrix.gguf",
        "gguf/.run-q6_k.gguf.4194999.tmp",
        "gguf/run-q8_0.gguf.unverified",
    ),
}


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run whose config ships f16 and q8_0, every file of 1,000 bytes."""
    paths = RunPaths(tmp_path / "outputs" / "run", "run")
    for name in (*KEPT, *(name for names in CHOSEN.values() for name in names)):
        path = paths.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    config = Config.model_validate({"run": {"name": "run"}, "export": {"quantizations": ["f16", "q8_0"]}})
    paths.config.write_text(config.to_yaml())
    return paths


def clean(paths: RunPaths, *more: str) -> int:
    return main(["clean", str(paths.root), *more])


def files(paths: RunPaths) -> set[str]:
    found = {path.relative_to(paths.root).as_posix() for path in paths.root.rglob("*") if path.is_file()}
    return found - {"run.lock"}


def test_without_a_choice_everything_is_shown_and_nothing_removed(paths: RunPaths, capsys) -> None:
    before = files(paths)
    assert clean(paths) == 0
    printed = capsys.readouterr().out
    assert "0.0 MB  --merged" in printed and "choose by --checkpoints, --merged, --intermediates" in printed
    assert "[x]" not in printed
    assert files(paths) == before


@pytest.mark.parametrize("choice", CHOSEN)
def test_a_choice_removes_its_own_and_nothing_else(paths: RunPaths, choice: str, capsys) -> None:
    before = files(paths)
    assert clean(paths, f"--{choice}", "--yes") == 0
    assert files(paths) == before - set(CHOSEN[choice])
    size_bytes = sum(1000 for _ in CHOSEN[choice])
    assert f"removed {size_bytes / 1e6:.1f} MB" in capsys.readouterr().out


def test_all_choices_together_leave_what_must_stay(paths: RunPaths) -> None:
    assert clean(paths, *(f"--{choice}" for choice in CHOSEN), "--yes") == 0
    assert files(paths) == set(KEPT)
    assert clean(paths, "--merged", "--yes") == 0, "nothing left is no fault"


def test_no_name_of_a_run_makes_its_shipped_files_intermediates(paths: RunPaths) -> None:
    named = RunPaths(paths.root, "imatrix-256")
    named.gguf("q8_0").write_bytes(b"x")
    paths.config.write_text(paths.config.read_text().replace("name: run", f"name: {named.name}"))
    assert clean(paths, "--intermediates", "--yes") == 0
    assert named.gguf("q8_0").exists() and not paths.gguf("q8_0").exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 1), ("n", 1)])
def test_it_asks_with_the_bytes_before(paths: RunPaths, answer: str, code: int, monkeypatch, capsys) -> None:
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or answer)
    (paths.merged / "model.safetensors").write_bytes(b"x" * 2_500_000)
    assert clean(paths, "--merged") == code
    assert asked == ["remove 1 of them, 2.5 MB? [y/N] "]
    assert paths.merged.exists() == bool(code)


def test_with_nobody_to_ask_it_wants_yes(paths: RunPaths, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert clean(paths, "--merged") == 1
    assert "add --yes" in capsys.readouterr().err
    assert paths.merged.exists()


def test_checkpoints_of_an_unfinished_training_are_named_as_such(paths: RunPaths, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: "n")
    (paths.checkpoints / "inputs.json").write_text(json.dumps({"inputs": "x", "is_finished": False}))
    assert clean(paths, "--checkpoints") == 1
    assert "The training is not finished" in capsys.readouterr().out


def test_a_run_at_work_is_left_alone(paths: RunPaths, capsys) -> None:
    with held_by_another("run", paths.lock) as pid:
        assert clean(paths, "--merged", "--yes") == 1
        assert f"another run is at work here (process {pid}); wait for it, or stop it" in capsys.readouterr().err
        assert paths.merged.exists()
    assert clean(paths, "--merged", "--yes") == 0


def test_a_disk_that_cannot_be_written_is_not_taken_for_a_run_at_work(paths: RunPaths, tmp_path: Path, capsys) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        there = RunPaths(shutil.copytree(paths.root, disk.root / "run"), "run")
        there.lock.write_text("1\n")
        disk.remount("ro")
        assert clean(there, "--merged", "--yes") == 1
    message = capsys.readouterr().err
    assert f"{there.lock}: cannot be written" in message and "at work" not in message


def test_a_file_being_written_is_left_alone(paths: RunPaths, capsys) -> None:
    (paths.root / "gguf" / f".run-q8_0.gguf.{os.getppid()}.tmp").write_bytes(b"half")
    assert clean(paths, "--intermediates", "--yes") == 1
    assert f"process {os.getppid()} is writing this" in capsys.readouterr().err
    assert (paths.root / "gguf" / "run-bf16.gguf").exists()


def test_a_linked_folder_loses_the_link_alone(paths: RunPaths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    paths.merged.rename(elsewhere)
    paths.merged.symlink_to(elsewhere, target_is_directory=True)
    assert clean(paths, "--merged", "--yes") == 0
    assert not paths.merged.is_symlink() and (elsewhere / "model.safetensors").exists()


def test_a_run_that_was_moved_is_cleaned_where_it_lies(paths: RunPaths, tmp_path: Path) -> None:
    moved = RunPaths(paths.root.rename(tmp_path / "moved"), "run")
    assert load_config(moved.config).paths.root != moved.root
    assert clean(moved, "--merged", "--yes") == 0
    assert not moved.merged.exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "merged").mkdir()
    assert clean(RunPaths(tmp_path, ""), "--merged", "--yes") == 1
    assert "no run (it has no config.yaml)" in capsys.readouterr().err
    assert (tmp_path / "merged").exists()
