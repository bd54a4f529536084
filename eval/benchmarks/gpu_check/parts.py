"""The parts of the GPU check, each in a process of its own: `python -m eval.benchmarks.gpu_check.parts NAME DEVICE`.

A part returns its findings, and they are the last line of stdout as JSON. All of them run on a CPU too, but for the
kernels that only CUDA has: how they are tried without a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.config import Config, load_config
from observer.paths import NANO_BASE, PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from observer.training.batching.forest import Batch
    from observer.training.device import Backend, Device

SHAPES = {"Qwen3-0.6B": (16, 8, 128), "SmolLM2-135M": (9, 3, 64), "nano": (4, 2, 64)}
"""Query heads, key heads and their size."""
LARGEST_NLL_DIFFERENCE = 0.02
"""Of a token-mean loss in 16 bits over two layouts, or in two runs, relative."""
N_ROWS = 16
BATCH_ROWS = 4
"""Of the run that is stopped, which is to show that it is resumed: start-up is most of its time."""
CONFIG = "configs/nano.yaml"


@dataclass(frozen=True)
class Finding:
    """What was looked at, the figure found, and whether it is right; None where a figure has no right or wrong."""

    name: str
    figure: str
    is_right: bool | None = None


def attention(device: Device) -> list[Finding]:
    """One call of attention against dense attention: the causal mask's alignment, grouped heads, both precisions."""
    import torch

    from observer.training.batching import varlen

    findings = []
    for dtype in (torch.bfloat16, torch.float16):
        for name, shape in SHAPES.items():
            difference = varlen.try_out(torch.device(device), dtype, *shape)
            is_right = difference < varlen.LARGEST_DIFFERENCE
            findings.append(Finding(f"{name}, {dtype}".replace("torch.", ""), f"{difference:.4f}", is_right))
    return findings


def forest_transformers(device: Device) -> list[Finding]:
    """Loss of the same rows in a forest and padded, over 16-bit and NF4 weights, through transformers' forward."""
    return _forest(device, "transformers")


def forest_unsloth(device: Device) -> list[Finding]:
    """The same through Unsloth's forward."""
    return _forest(device, "unsloth")


def _forest(device: Device, backend: Backend) -> list[Finding]:
    from observer.training.batching.loss import completion_nll, layout_line

    findings = []
    for in_4bit in (False, True):
        model, batch = load(device, backend, f"model.load_in_4bit={in_4bit}".lower())
        name = f"{backend}, {'NF4' if in_4bit else '16 bits'}"
        findings.append(Finding(f"{name}, layout", layout_line(model)))
        losses = []
        for dropout in (0.0, 0.1):  # a config with dropout has rows padded; the layers drop nothing
            for config in model.peft_config.values():
                config.lora_dropout = dropout  # type: ignore[attr-defined]
            with _autocast(model):
                losses.append(completion_nll(model.train(), batch).mean())
        difference = (losses[0] / losses[1] - 1).abs().item()
        findings.append(Finding(f"{name}, loss", f"{losses[0]:.4f}, padded {losses[1]:.4f}",
                                difference < LARGEST_NLL_DIFFERENCE))  # fmt: skip
        losses[0].backward()
        norm = sum(p.grad.norm().item() for p in model.parameters() if p.grad is not None)
        findings.append(Finding(f"{name}, sum of gradient norms", f"{norm:.4g}", 0 < norm < float("inf")))
    return findings


def launches(device: Device) -> list[Finding]:
    """Kernels launched by the blocks in a step, forward and backward; on a CPU, operators called."""
    from observer.training.model import compile_blocks

    model, batch = load(device, "transformers")
    forests: dict[str, Any] = {"attention group by group": batch["forest"]}
    if device == "cuda":
        segments = batch["forest"].segments
        forests |= {"attention in one call": segments, "in one call, blocks compiled": segments}
    findings = []
    for name, forest in forests.items():
        if "compiled" in name:
            compile_blocks(model)
        run_blocks(model, batch, forest)  # the first time compiles and allocates
        findings.append(Finding(name, f"{count_launches(lambda: run_blocks(model, batch, forest), device):,}"))  # noqa: B023
    return findings


def run_blocks(model: PeftModel, batch: Batch, forest: Any) -> None:
    import torch

    from observer.training.batching.attention import use_forest_attention

    use_forest_attention(model.config)
    body: Any = model.get_base_model().model
    with _autocast(model):
        hidden = body(input_ids=batch["input_ids"], position_ids=batch["position_ids"], forest=forest,
                      attention_mask=torch.empty(1, 1, 0, 0, device=model.device), use_cache=False)  # fmt: skip
    hidden.last_hidden_state.float().sum().backward()


def count_launches(step: Callable[[], object], device: Device) -> int:
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        step()
    return sum(event.device_type.name == device.upper() for event in profiler.events() or [])


def resumed(device: Device) -> list[Finding]:
    """A run stopped by a signal and given again ends where an uncut one does, as far as a GPU repeats itself."""
    with tempfile.TemporaryDirectory() as folder:
        for path, n_rows in ((TRAIN_JSONL, 8 * BATCH_ROWS), (VAL_JSONL, N_ROWS)):
            rows = (PROJECT_ROOT / path).read_text(encoding="utf-8").splitlines(keepends=True)
            evenly = rows[:: len(rows) // n_rows][:n_rows]  # both tasks: the files have one behind the other
            Path(folder, path.name).write_text("".join(evenly), encoding="utf-8")
        uncut, cut = (_recipe(device, Path(folder), name) for name in ("uncut", "cut"))
        subprocess.run(uncut, cwd=PROJECT_ROOT, check=True, stdout=sys.stderr)
        metrics = Path(folder, "cut", "metrics.jsonl")
        with subprocess.Popen(cut, cwd=PROJECT_ROOT, stdout=sys.stderr) as process:
            while process.poll() is None and len(_losses(metrics)) < 3:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
        stopped_at = len(_losses(metrics))
        subprocess.run(cut, cwd=PROJECT_ROOT, check=True, stdout=sys.stderr)
        losses = [_losses(Path(folder, name, "metrics.jsonl")) for name in ("uncut", "cut")]
    difference = abs(losses[1][-1] / losses[0][-1] - 1)
    is_right = len(losses[0]) == len(losses[1]) and difference < LARGEST_NLL_DIFFERENCE
    return [Finding("steps", f"{len(losses[0])}, and {len(losses[1])} stopped at {stopped_at}"),
            Finding("last loss", f"{losses[0][-1]:.4f}, resumed {losses[1][-1]:.4f}", is_right)]  # fmt: skip


def _recipe(device: Device, folder: Path, name: str) -> list[str]:
    settings = {
        "run.device": device, "run.output_dir": folder, "run.name": name, "model.dtype": "auto",
        "data.train": folder / TRAIN_JSONL.name, "data.val": folder / VAL_JSONL.name, "data.more": "[]",
        "training.per_device_train_batch_size": BATCH_ROWS, "training.max_steps": 8, "training.warmup_steps": 2,
        "training.eval_steps": 4, "training.logging_steps": 1,
    }  # fmt: skip
    command = [sys.executable, "train_sft.py", "--config", CONFIG, "--until", "train"]
    return command + [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def _losses(metrics: Path) -> list[float]:
    from observer.training.progress import read_metrics

    return [record["loss"] for record in read_metrics(metrics) if "loss" in record]


def load(device: Device, backend: Backend, *overrides: str) -> tuple[PeftModel, Batch]:
    """The nano base with an adapter that does something, in the GPU's 16 bits, and a batch of its rows."""
    import torch

    from observer.training.batching.forest import collate, to_device
    from observer.training.device import choose_runtime, prepare_backend
    from observer.training.model import attach_lora, load_base
    from observer.training.rows import encode_with, tokenize_rows
    from observer.weights.base import load_tokenizer

    settings = [f"run.device={device}", f"model.backend={backend}", "model.dtype=auto", *overrides]
    config: Config = load_config(PROJECT_ROOT / CONFIG, settings)
    runtime = choose_runtime(config)
    prepare_backend(runtime)
    base = PROJECT_ROOT / NANO_BASE
    model = attach_lora(load_base(config, runtime, base), config, runtime)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    lines = (PROJECT_ROOT / TRAIN_JSONL).read_text(encoding="utf-8").splitlines()[:N_ROWS]
    rows = tokenize_rows([json.loads(line) for line in lines], encode_with(load_tokenizer(base)))
    batch = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    return model, to_device(batch, model.device)


def _autocast(model: PeftModel) -> torch.autocast:
    import torch

    dtype = model.get_input_embeddings().weight.dtype
    return torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)


PARTS: dict[str, Callable[[Device], list[Finding]]] = {
    "attention": attention,
    "forest-transformers": forest_transformers,
    "forest-unsloth": forest_unsloth,
    "launches": launches,
    "resumed": resumed,
}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log
    print(json.dumps([asdict(finding) for finding in PARTS[sys.argv[1]](sys.argv[2])]), file=answers)  # type: ignore[arg-type]
