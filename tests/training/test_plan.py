"""Plans are right where they can be checked: parameter counts, steps, sizes; and they need no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from observer.config import Config, load_config
from observer.files import write_jsonl
from observer.paths import PROJECT_ROOT
from observer.training.batching.forest import collate, pad
from observer.training.device import Runtime
from observer.training.model import attach_lora, trainable_line
from observer.training.planning.cost import Work, estimate_memory, evaluation_work, training_work
from observer.training.planning.plan import Plan, artefact_sizes, compare_with_plan, count_steps
from observer.training.planning.speed import measure_speed
from observer.training.rows import TokenRow
from observer.weights.checkpoint import config_values, read_shape
from observer.weights.size import QWEN3_0_6B, count_parameters, count_trainable
from tests.support.tiny_runs import split_rows, write_tiny_run

if TYPE_CHECKING:
    from peft import PeftModel

CONFIGS = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))
FACTOR = 1.25
"""How far memory in use may be off its plan, either way."""
ON_CPU = Runtime("cpu", "transformers", "float32", ())


def adapted(config: Config) -> PeftModel:
    """Qwen3-0.6B with the adapter of a config, as PEFT makes them, without memory."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **config_values(QWEN3_0_6B)))
        return attach_lora(base, config, ON_CPU)


def test_the_reference_config_trains_exactly_4_587_520_parameters_of_the_full_size_model() -> None:
    model = adapted(load_config(PROJECT_ROOT / "configs" / "reference.yaml"))
    assert trainable_line(model) == "trainable: 4,587,520 of 600,637,440 parameters (0.76 %)"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_plan_counts_what_peft_counts(path: Path) -> None:
    config = load_config(path, ["model.adapter=null"])  # another model's, and in no clone
    trainable, total = adapted(config).get_nb_trainable_parameters()
    assert count_trainable(QWEN3_0_6B, config) == trainable
    assert count_parameters(QWEN3_0_6B) == total - trainable


@pytest.mark.parametrize(
    ("n_rows", "batch", "accumulation", "epochs", "max_steps", "steps"),
    [
        (2640, 16, 1, 2, -1, 330),
        (2640, 4, 1, 3, -1, 1980),
        (2641, 4, 1, 1, -1, 661),
        (2640, 4, 4, 1, -1, 165),
        (10, 4, 2, 1, -1, 2),
        (10, 4, 1, 0.5, -1, 2),
        (10, 4, 1, 9, 7, 7),
    ],
)
def test_steps_are_counted_as_the_trainer_does(
    n_rows: int, batch: int, accumulation: int, epochs: float, max_steps: int, steps: int
) -> None:
    training = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
    }
    assert count_steps(Config.model_validate({"training": training}), n_rows) == steps


def test_gguf_sizes_are_near_those_measured_on_the_full_size_model() -> None:
    """637, 394 and 294 MB are what llama.cpp's quantizer writes for Qwen3-0.6B."""
    config = Config.model_validate({"export": {"quantizations": ["q8_0", "q4_k_m", "q2_k"]}})
    sizes = artefact_sizes(config, ON_CPU, QWEN3_0_6B)
    by_type = {name.rpartition("-")[2]: size / 1e6 for name, size in sizes.items()}
    for file, measured_mb in {"q8_0.gguf": 637, "q4_k_m.gguf": 394, "q2_k.gguf": 294}.items():
        assert by_type[file] == pytest.approx(measured_mb, rel=0.03)


TASKS = {"grade": list(range(100, 140)), "extract": list(range(200, 270))}


def rows_like(shapes: list[tuple[bool, int, int]]) -> list[TokenRow]:
    """Rows of both tasks; their own prompts begin with unlike tokens, so that no more is shared than is meant."""
    rows = []
    for number, (is_grade, prompt, completion) in enumerate(shapes):
        task = "grade" if is_grade else "extract"
        own = [1_000 + number] * prompt + [7] * completion
        rows.append(TokenRow(TASKS[task] + own, len(TASKS[task]) + prompt, task))
    return rows


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(2, 30), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1]),
)
def test_the_plan_counts_the_tokens_that_batches_will_have(
    shapes: list[tuple[bool, int, int]], batch_size: int, dropout: float
) -> None:
    """The larger a batch's share of a task, the nearer: a lone row of a task shares with no one, in plan and batch."""
    rows = rows_like(shapes)
    config = Config.model_validate(
        {"training": {"per_device_eval_batch_size": batch_size}, "lora": {"lora_dropout": dropout}}
    )
    ordered = sorted(rows, key=lambda row: (row.task, len(row)), reverse=True)
    expected = []
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        batch = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in chunk])
        ids = pad(batch).input_ids if dropout else batch["input_ids"]
        expected.append(Work(ids.numel(), len(batch["scored"])))
    assert evaluation_work(config, rows) == expected


def test_an_epochs_batches_have_every_scored_token_once_and_each_instruction_once_a_batch() -> None:
    rows = rows_like([(n % 3 > 0, 5 + n % 7, 2 + n % 5) for n in range(60)])
    config = Config.model_validate({"training": {"per_device_train_batch_size": 10}})
    work = training_work(config, rows)
    assert len(work) == 6 and sum(batch.n_scored for batch in work) == sum(len(r) - r.prompt_length for r in rows)
    own = sum(len(row) - len(TASKS[row.task]) for row in rows)
    assert sum(batch.n_tokens for batch in work) == own + 6 * sum(map(len, TASKS.values()))
    assert len(training_work(config, rows, n_processes=2)) == 3


def test_on_cuda_tensors_alone_are_planned_as_the_peak_of_a_run_counts_them_alone(tiny_model: Path) -> None:
    shape, work = read_shape(tiny_model), training_work(Config(), rows_like([(True, 20, 8)]))
    on_cuda = Runtime("cuda", "transformers", "float32", ())
    weights = 4 * count_parameters(shape)
    assert weights < estimate_memory(Config(), on_cuda, work, shape) < weights + 32e6


@pytest.mark.slow
def test_memory_in_use_is_within_a_quarter_of_the_plan_on_the_nano_base(tmp_path: Path) -> None:
    """With the recipe's batch of 16; on the CPU, resident memory with all libraries."""
    write_jsonl(tmp_path / "val.jsonl", split_rows(8))
    command = [sys.executable, "train_sft.py", "--config", "configs/nano.yaml", "--until", "train"]
    for setting in ("training.max_steps=8", "training.warmup_steps=0", "training.eval_steps=8", "run.device=cpu",
                    f"data.val={tmp_path / 'val.jsonl'}", f"run.output_dir={tmp_path}"):  # fmt: skip
        command += ["--set", setting]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = re.search(r"planned ([\d.]+) GB, at most ([\d.]+) GB in use", done.stdout)
    assert found is not None and "memory     about" in done.stdout and "time       about" in done.stdout, done.stdout
    planned, used = map(float, found.groups())
    assert 1 / FACTOR < used / planned < FACTOR, found.group()


def test_speed_is_measured_on_this_machine_and_leaves_chance_alone(tiny_model: Path) -> None:
    state = torch.get_rng_state()
    speed = measure_speed(Config(), ON_CPU, read_shape(tiny_model), n_tokens=256)
    assert speed is not None and min(speed.token_s, speed.token_forward_s, speed.scored_s, speed.scored_forward_s) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_the_device_of_the_run_no_time_is_predicted() -> None:
    assert measure_speed(Config(), Runtime("cuda", "transformers", "bfloat16", ()), QWEN3_0_6B, 256) is None


def test_how_far_off_the_plan_was_is_one_line() -> None:
    plan = Plan(100, 2.0e9, 210.0, {}, "")
    assert compare_with_plan(plan, 198.0, 2.5e9) == (
        "predicted 3 min 30 s, took 3 min 18 s (-6 %); planned 2.00 GB, at most 2.50 GB in use (+25 %)"
    )
    assert compare_with_plan(replace(plan, seconds=None), 198.0, 2.0e9).startswith("took 3 min 18 s, not predicted; ")


@pytest.mark.slow
def test_a_dry_run_of_the_full_size_config_needs_no_network_and_no_gpu(tmp_path: Path, tiny_model: Path) -> None:
    write_tiny_run(tmp_path, tiny_model)
    command = [sys.executable, "train_sft.py", "--config", "configs/qwen3-0.6b.yaml", "--dry-run"]
    command += ["--set", f"data.train={tmp_path / 'train.jsonl'}", "--set", f"data.val={tmp_path / 'val.jsonl'}"]
    command += ["--set", f"run.output_dir={tmp_path / 'outputs'}", "--set", "data.more=[]"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty-cache"),
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for expected in (
        "596.0M parameters",
        "device     cuda",
        "24 rows",
        "memory     about",
        "time       not predicted",
        "gguf/qwen3-observer-q4_k_m.gguf",
    ):
        assert expected in done.stdout
    assert not (tmp_path / "outputs").exists()
