"""Plans are right where they can be checked: parameter counts, steps, sizes; and they need no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from observer.config import Config, load_config
from observer.export.checkpoint import read_shape
from observer.paths import PROJECT_ROOT
from observer.training.device import Runtime
from observer.training.model import attach_lora, trainable_line
from observer.training.plan import QWEN3_0_6B, artefact_sizes, count_parameters, count_steps, count_trainable
from tests.tiny_runs import write_tiny_run

CONFIGS = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))
ON_CPU = Runtime("cpu", "transformers", "float32", ())


def full_size_qwen3() -> Qwen3Config:
    """Qwen/Qwen3-0.6B's config.json."""
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=1_024,
        intermediate_size=3_072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )


def test_the_reference_config_trains_exactly_4_587_520_parameters_of_the_full_size_model() -> None:
    config = load_config(PROJECT_ROOT / "configs" / "reference.yaml")
    with torch.device("meta"):
        model = attach_lora(AutoModelForCausalLM.from_config(full_size_qwen3()), config, ON_CPU)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_587_520
    assert trainable_line(model) == "trainable: 4,587,520 of 600,637,440 parameters (0.76 %)"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_plan_counts_what_peft_counts(path: Path) -> None:
    config = load_config(path)
    with torch.device("meta"):
        model = attach_lora(AutoModelForCausalLM.from_config(full_size_qwen3()), config, ON_CPU)
    trainable, total = model.get_nb_trainable_parameters()
    assert count_trainable(QWEN3_0_6B, config) == trainable
    assert count_parameters(QWEN3_0_6B) == total - trainable


def test_the_shape_table_is_the_one_of_the_full_size_model() -> None:
    assert count_parameters(QWEN3_0_6B) == 596_049_920


def test_the_shape_of_a_folder_is_counted_like_its_weights(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model))
    assert count_parameters(read_shape(tiny_model)) == sum(p.numel() for p in model.parameters())


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


@pytest.mark.slow
def test_a_dry_run_of_the_full_size_config_needs_no_network_and_no_gpu(tmp_path: Path, tiny_model: Path) -> None:
    write_tiny_run(tmp_path, tiny_model)
    command = [sys.executable, "train_sft.py", "--config", "configs/qwen3-0.6b.yaml", "--dry-run"]
    command += ["--set", f"data.train={tmp_path / 'train.jsonl'}", "--set", f"data.val={tmp_path / 'val.jsonl'}"]
    command += ["--set", f"run.output_dir={tmp_path / 'outputs'}"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty-cache"),
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for expected in ("596.0M parameters", "device     cuda", "24 rows", "about", "gguf/qwen3-observer-q4_k_m.gguf"):
        assert expected in done.stdout
    assert not (tmp_path / "outputs").exists()
