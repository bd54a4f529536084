"""Several processes train as one does with the whole batch, be the weights whole in each or split over them; the first
alone leaves files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train_sft
from observer.config import Config, load_config
from observer.errors import ObserverError
from observer.files import write_json
from observer.paths import PROJECT_ROOT, RunPaths
from observer.training.device import Runtime, choose_runtime
from observer.training.multiprocess.processes import Launch, least
from observer.training.planning.cost import estimate_memory, training_work
from observer.training.planning.memory import free_memory
from observer.training.prepare import check_settings
from observer.training.progress import read_metrics
from observer.training.rows import TokenRow
from observer.weights.size import KNOWN_SHAPES, count_embedding, count_parameters
from tests.support.tiny_runs import write_tiny_run
from tests.training.test_training import trained

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FSDP = ("accelerate.commands.launch", "--config_file", "configs/accelerate/fsdp.yaml", "--main_process_port", "0")
HALF = ("--set", "training.per_device_train_batch_size=4")
N_ROWS = 17
"""Three steps of 8, 8 and 1 rows an epoch: in the last, the second process has none."""


def launch(config: Path, *arguments: str, launcher: tuple[str, ...] = TORCHRUN) -> subprocess.Popen[str]:
    """Two CPU processes of train_sft.py, in a process group of their own, as a shell gives them."""
    command = [sys.executable, "-m", *launcher, "train_sft.py", "--config", str(config), *HALF, *arguments]
    return subprocess.Popen(
        command, cwd=PROJECT_ROOT, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def paths_in(folder: Path) -> RunPaths:
    return RunPaths(folder / "outputs" / "tiny", "tiny")


def assert_same_course(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert [record["step"] for record in two] == [record["step"] for record in one]
    for alone, together in zip(one, two, strict=True):
        names = ("eval_loss", "eval_grade_loss", "eval_extract_loss", "loss", "grad_norm", "num_tokens")
        for name in alone.keys() & names:
            assert together[name] == pytest.approx(alone[name], rel=1e-5 if "loss" in name else 1e-4), name


def finish(process: subprocess.Popen[str]) -> str:
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Config, list[dict[str, Any]]]:
    """A run by one process with the whole batch, and its records."""
    config = load_config(write_tiny_run(tmp_path_factory.mktemp("one"), tiny_model, n_rows=N_ROWS))
    return config, trained(config)


@pytest.fixture(scope="module")
def split_weights(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """The folder of a run up to its adapter by two processes that hold half of the weights each, and what it said."""
    folder = tmp_path_factory.mktemp("fsdp")
    config = write_tiny_run(folder, tiny_model, n_rows=N_ROWS)
    return folder, finish(launch(config, "--until", "train", launcher=FSDP))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """The folder of a whole run by two processes that Ctrl-C has cut, and what they printed when launched again."""
    folder = tmp_path_factory.mktemp("resumed")
    config, paths = write_tiny_run(folder, tiny_model, n_rows=N_ROWS), paths_in(folder)
    process = launch(config)
    while process.poll() is None and len(read_metrics(paths.metrics)) < 5:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    printed = process.communicate(timeout=600)[0]
    assert "stopping after this step" in printed and "stopped by a signal" in printed
    assert process.returncode != 0 and not paths.adapter.exists()
    return folder, finish(launch(config))


@pytest.mark.slow
def test_two_processes_reach_the_losses_of_one_at_the_same_global_batch_though_ctrl_c_has_cut_them(
    one_process: tuple[Config, list[dict[str, Any]]], resumed: tuple[Path, str]
) -> None:
    paths = paths_in(resumed[0])
    assert_same_course(one_process[1], read_metrics(paths.metrics))
    assert "resuming from" in paths.log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_weights_split_over_two_processes_reach_the_losses_of_one_and_leave_its_adapter_whole(
    one_process: tuple[Config, list[dict[str, Any]]], split_weights: tuple[Path, str]
) -> None:
    """The losses, of training and of validation, do not depend on who holds which part of the model."""
    paths = paths_in(split_weights[0])
    assert_same_course(one_process[1], read_metrics(paths.metrics))
    assert "1/2 of the weights (FSDP)" in split_weights[1] and split_weights[1].count("train: done in") == 1
    assert (paths.checkpoints / "checkpoint-12" / "pytorch_model_fsdp.bin").is_file(), "the weights were split"
    name = "adapter_model.safetensors"
    alone, together = (load_file(folder / name) for folder in (one_process[0].paths.adapter, paths.adapter))
    assert {n: (t.shape, t.dtype) for n, t in together.items()} == {n: (t.shape, t.dtype) for n, t in alone.items()}
    assert all(torch.allclose(together[n], alone[n], rtol=1e-3, atol=1e-4) for n in alone)
    assert not list(paths.root.rglob(".*")), "no temporary files are left"


@pytest.mark.slow
def test_split_weights_go_on_from_a_checkpoint_exactly_and_the_best_step_is_put_together(
    split_weights: tuple[Path, str],
) -> None:
    paths = paths_in(split_weights[0])
    uncut, best = read_metrics(paths.metrics), paths.checkpoints / "checkpoint-8"
    for whole in (paths.adapter, paths.checkpoints / "checkpoint-12"):
        shutil.rmtree(whole)
    state = json.loads((best / "trainer_state.json").read_text())
    write_json(best / "trainer_state.json", state | {"best_metric": 0.0})  # so that no later step is better
    printed = finish(launch(split_weights[0] / "tiny.yaml", "--until", "train", "--resume", launcher=FSDP))
    assert f"resuming from {best}" in printed and "adapter of step 8 saved" in printed
    course = [[record | {"elapsed_s": 0} for record in records] for records in (uncut, read_metrics(paths.metrics))]
    assert course[0] == course[1]
    name = "adapter_model.safetensors"
    assert (paths.adapter / name).read_bytes() == (best / name).read_bytes()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 1; take 2"),
        ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT", "take FULL_STATE_DICT"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "every process loads the base"),
        ("WORLD_SIZE", "1", "num_processes: 1"),
        ("", "", "4-bit weights are not split"),
    ],
)
def test_a_launch_that_cannot_split_the_weights_is_refused_with_what_to_take(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    for name, text in {**asked, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", variable or "_": value}.items():
        monkeypatch.setenv(name, text)
    overrides = ["run.device=cpu", f"model.load_in_4bit={'false' if variable else 'true'}"]
    config = load_config(PROJECT_ROOT / "configs" / "qwen3-0.6b.yaml", overrides)
    with pytest.raises(ObserverError, match=f"{said}.*configs/accelerate/fsdp.yaml") as refused:
        check_settings(config, choose_runtime(config))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_alone_prints_the_plan_of_a_dry_run(
    rank: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train_sft.main(["--config", str(write_tiny_run(tmp_path, tiny_model)), "--dry-run"]) == 0
    assert bool(capsys.readouterr().out) == (rank == "0")


def free_and_agreed(launch: Launch, folder: Path) -> tuple[int | None, int | None]:
    """What this process has of the memory, and what it settles on when it has joined the others."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=launch.rank, world_size=2)
    free = free_memory("cpu", launch.n_on_machine)
    return free, least(launch, free, "cpu")


def test_processes_settle_on_the_memory_of_the_one_that_has_least(tmp_path: Path) -> None:
    """Of two machines, where the second has four more processes at work in the same memory."""
    launches = [Launch(0, 2), Launch(1, 2, n_on_machine=5)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        (first, agreed), (second, agreed_too) = pool.starmap(free_and_agreed, [(one, tmp_path) for one in launches])
    assert first and second and second < first / 3
    assert agreed == agreed_too == second
    assert least(launches[0], first, "cpu") == first, "a dry run joins nobody"


def test_a_part_of_the_weights_takes_less_memory_than_the_whole() -> None:
    config = load_config(PROJECT_ROOT / "configs" / "qwen3-0.6b.yaml", ["training.per_device_train_batch_size=8"])
    work = training_work(config, [TokenRow([0] * 200, 150, "grade")] * 32, n_processes=2)
    whole, part = (
        estimate_memory(config, Runtime("cuda", "transformers", "bfloat16", (), launch), work, KNOWN_SHAPES["qwen3-8b"])
        for launch in (Launch(0, 2, 0), Launch(0, 2, 0, shards_weights=True))
    )
    body_bytes = 2 * (count_parameters(KNOWN_SHAPES["qwen3-8b"]) - count_embedding(KNOWN_SHAPES["qwen3-8b"]))
    assert 0.4 * body_bytes < whole - part < 0.6 * body_bytes


@pytest.mark.slow
def test_the_first_process_alone_writes_prints_and_exports(resumed: tuple[Path, str]) -> None:
    folder, printed = resumed
    root = folder / "outputs" / "tiny"
    for name in ("adapter/adapter_model.safetensors", "gguf/tiny-q8_0.gguf", "Modelfile", "reports/summary.md"):
        assert (root / name).stat().st_size > 0, name
    for once in ("12 of 8 rows", "trainable:", "train: done in", "gguf q8_0: done in", "ollama create tiny -f"):
        assert printed.count(once) == 1, once
    notes = json.loads((root / "manifest.json").read_text())["stages"]["train"]["notes"]
    assert (notes["steps"], notes["rows_a_step"]) == (12, 8)
    assert not list(root.rglob(".*")), "no temporary files are left"


@pytest.mark.slow
def test_the_same_launch_again_trains_nothing_twice(resumed: tuple[Path, str]) -> None:
    printed = finish(launch(resumed[0] / "tiny.yaml", "--until", "train"))
    assert "train: done before on the same inputs, skipped" in printed
