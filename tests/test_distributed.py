"""Several processes train as one does with the whole batch; the first alone leaves files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from observer.config import load_config
from observer.paths import PROJECT_ROOT
from observer.training.progress import read_metrics
from tests.test_training import trained
from tests.tiny_runs import write_tiny_run

HALF = ("--set", "training.per_device_train_batch_size=4")
N_ROWS = 17
"""Three steps of 8, 8 and 1 rows an epoch: in the last, the second process has none."""


def launch(config: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Two CPU processes of train_sft.py, in a process group of their own, as a shell gives them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_sft.py"]
    return subprocess.Popen(
        [*command, "--config", str(config), *HALF, *arguments], cwd=PROJECT_ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    printed = process.communicate(timeout=400)[0]
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """The folder of a whole run by two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    return folder, finish(launch(write_tiny_run(folder, tiny_model, n_rows=N_ROWS)))


@pytest.mark.slow
def test_two_processes_reach_the_losses_of_one_at_the_same_global_batch(
    tmp_path: Path, tiny_model: Path, two_processes: tuple[Path, str]
) -> None:
    one = trained(load_config(write_tiny_run(tmp_path, tiny_model, n_rows=N_ROWS)))
    two = read_metrics(two_processes[0] / "outputs" / "tiny" / "metrics.jsonl")
    assert [record["step"] for record in two] == [record["step"] for record in one]
    for alone, together in zip(one, two, strict=True):
        names = ("eval_loss", "eval_grade_loss", "eval_extract_loss", "loss", "grad_norm", "num_tokens")
        for name in alone.keys() & names:
            assert together[name] == pytest.approx(alone[name], rel=1e-5 if "loss" in name else 1e-4), name


@pytest.mark.slow
def test_the_first_process_alone_writes_prints_and_exports(two_processes: tuple[Path, str]) -> None:
    folder, printed = two_processes
    root = folder / "outputs" / "tiny"
    for name in ("adapter/adapter_model.safetensors", "gguf/tiny-q8_0.gguf", "Modelfile", "reports/summary.md"):
        assert (root / name).stat().st_size > 0, name
    for once in ("12 of 8 rows", "trainable:", "train: done in", "gguf q8_0: done in", "ollama create tiny -f"):
        assert printed.count(once) == 1, once
    assert json.loads((root / "manifest.json").read_text())["stages"]["train"]["notes"]["steps"] == 12
    assert not list(root.rglob(".*")), "no temporary files are left"


@pytest.mark.slow
def test_the_same_launch_again_trains_nothing_twice(two_processes: tuple[Path, str]) -> None:
    printed = finish(launch(two_processes[0] / "tiny.yaml"))
    assert "train: done before on the same inputs, skipped" in printed


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_of_all_processes_and_the_same_launch_goes_on(
    tmp_path: Path, tiny_model: Path, two_processes: tuple[Path, str]
) -> None:
    config = write_tiny_run(tmp_path, tiny_model, n_rows=N_ROWS)
    metrics = tmp_path / "outputs" / "tiny" / "metrics.jsonl"
    process = launch(config)
    while process.poll() is None and len(read_metrics(metrics)) < 5:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    printed = process.communicate(timeout=120)[0]
    assert "stopping after this step" in printed and "stopped by a signal" in printed
    assert process.returncode != 0 and not (tmp_path / "outputs" / "tiny" / "adapter").exists()
    finish(launch(config))
    assert "resuming from" in (tmp_path / "outputs" / "tiny" / "training.log").read_text(encoding="utf-8")
    uncut = read_metrics(two_processes[0] / "outputs" / "tiny" / "metrics.jsonl")
    losses = [[record["loss"] for record in records if "loss" in record] for records in (read_metrics(metrics), uncut)]
    assert losses[0] == losses[1]
