"""What a run is going to do, worked out from shapes and row lengths before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observer.config import Config
from observer.console.durations import format_duration
from observer.training.device import Runtime
from observer.training.planning.cost import estimate_memory, estimate_seconds, training_work
from observer.training.planning.speed import measure_speed
from observer.training.rows import Splits, TokenRow
from observer.weights.checkpoint import ModelShape
from observer.weights.size import count_embedding, count_parameters, count_trainable

GGUF_BITS = {
    "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.7, "q5_0": 5.5,
    "q4_k_m": 4.85, "q4_0": 4.5, "iq4_xs": 4.25, "q3_k_m": 3.9, "q2_k": 3.0,
}  # fmt: skip
"""Bits a weight of the layers; the tied embedding of the small types is q6_k."""


@dataclass(frozen=True)
class Plan:
    """A run in numbers. Sizes are estimates in bytes; `steps` are optimizer steps.

    `seconds` are those of the training, or None where its device is not at hand to be timed.
    """

    steps: int
    memory_bytes: float
    seconds: float | None
    artefact_bytes: dict[str, float]
    text: str

    def bytes_missing(self, root: Path) -> int:
        """What is still to be written below the run's folder."""
        return int(sum(size for name, size in self.artefact_bytes.items() if not (root / name).exists()))


def make_plan(config: Config, runtime: Runtime, splits: Splits, shape: ModelShape, *, counted_with: str) -> Plan:
    """Work out steps, memory and disk. `counted_with` says where the token counts come from."""
    n_processes = runtime.launch.n_processes
    steps = count_steps(config, len(splits.train), n_processes)
    n_parameters, n_trainable = count_parameters(shape), count_trainable(shape, config)
    work = training_work(config, splits.train, n_processes)
    memory_bytes = estimate_memory(config, runtime, work, shape)
    n_tokens = sum(batch.n_tokens for batch in work) // max(1, len(work))
    speed = measure_speed(config, runtime, shape, n_tokens // n_processes)
    seconds = estimate_seconds(config, runtime, splits, shape, steps, speed) if speed else None
    artefacts = artefact_sizes(config, runtime, shape)
    n_checkpoints = min(config.training.save_total_limit, math.ceil(steps / config.training.eval_steps))
    nf4 = ", NF4" if config.model.load_in_4bit else ""
    lines = [
        f"run        {config.run.name} -> {config.paths.root}",
        f"base       {config.model.base}, {n_parameters / 1e6:,.1f}M parameters{nf4}",
        *(f"{reason.partition(' ')[0]:<10} {reason.partition(' ')[2]}" for reason in runtime.reasons),
        f"lora       r {config.lora.r}, alpha {config.lora.lora_alpha} on {', '.join(config.lora.target_modules)}: "
        f"{n_trainable:,} trainable of {n_parameters + n_trainable:,} parameters "
        f"({100 * n_trainable / (n_parameters + n_trainable):.2f} %)",
        describe_rows("train", [config.data.train, *config.data.more], splits.train),
        describe_rows("val", [config.data.val], splits.val),
        f"           counted with {counted_with}; data.max_length {config.data.max_length:,}",
        f"steps      {steps:,} of {n_processes * rows_per_step(config)} rows, eval loss and checkpoint every "
        f"{config.training.eval_steps}",
        f"           {n_tokens:,} tokens computed a batch for {_tokens_of_rows(config, runtime, splits):,} of its rows",
        f"memory     about {memory_bytes / 1e9:.1f} GB on {runtime.device}",
        f"time       {_time_line(seconds, runtime)}",
        "writes     " + "\n           ".join(f"{name:<42} {size / 1e6:>9,.1f} MB" for name, size in artefacts.items()),
        f"           and up to {n_checkpoints} checkpoints during training, "
        f"{3 * artefacts['adapter/'] / 1e6:,.1f} MB each",
    ]
    artefacts["checkpoints/"] = n_checkpoints * 3 * artefacts["adapter/"]
    return Plan(steps, memory_bytes, seconds, artefacts, "\n".join(lines))


def compare_with_plan(plan: Plan, seconds: float, peak_bytes: float) -> str:
    """One line on how far off the plan was: `predicted 3 min 30 s, took 3 min 18 s (-6 %); …`."""
    memory = f"planned {plan.memory_bytes / 1e9:.2f} GB, at most {peak_bytes / 1e9:.2f} GB in use"
    memory += _how_far(peak_bytes, plan.memory_bytes)
    if plan.seconds is None:
        return f"took {format_duration(seconds)}, not predicted; {memory}"
    predicted, took = format_duration(plan.seconds), format_duration(seconds)
    return f"predicted {predicted}, took {took}{_how_far(seconds, plan.seconds)}; {memory}"


def _how_far(found: float, planned: float) -> str:
    return f" ({100 * (found / planned - 1):+.0f} %)" if planned else ""


def _time_line(seconds: float | None, runtime: Runtime) -> str:
    if seconds is None:
        return f"not predicted: no {runtime.device} device here to time"
    return f"about {format_duration(seconds)} of training, from one block of the model timed on this machine just now"


def _tokens_of_rows(config: Config, runtime: Runtime, splits: Splits) -> int:
    n_rows = runtime.launch.n_processes * config.training.batch_size
    return sum(map(len, splits.train)) * n_rows // max(1, len(splits.train))


def rows_per_step(config: Config) -> int:
    return config.training.batch_size * config.training.gradient_accumulation_steps


def count_steps(config: Config, n_rows: int, n_processes: int = 1) -> int:
    """Optimizer steps, as transformers counts them: the last, short batch of an epoch is one too."""
    t = config.training
    if t.max_steps > 0:
        return t.max_steps
    batches = math.ceil(n_rows / (n_processes * t.batch_size))
    return math.ceil(t.num_train_epochs * max(1, math.ceil(batches / t.gradient_accumulation_steps)))


def artefact_sizes(config: Config, runtime: Runtime, shape: ModelShape) -> dict[str, float]:
    """Estimated bytes of every file or folder a run leaves, by its name below the run's folder."""
    paths, total, embedding = config.paths, count_parameters(shape), count_embedding(shape)
    merged_width = 4.0 if runtime.dtype == "float32" else 2.0
    sizes = {"adapter/": 4.0 * count_trainable(shape, config), "merged/": merged_width * total}
    for quantization in ("f16", *(q for q in config.export.quantizations if q != "f16")):
        bits = GGUF_BITS.get(quantization.lower(), 8.5)
        embedding_bits = bits if bits >= 6.56 else 6.56
        name = paths.gguf(quantization).relative_to(paths.root).as_posix()
        sizes[name] = (embedding * embedding_bits + (total - embedding) * bits) / 8
    return sizes


def describe_rows(name: str, files: Sequence[Path], rows: Sequence[TokenRow]) -> str:
    """One line for a split: rows, tokens in all, mean and longest row, trained tokens."""
    lengths = [len(row) for row in rows]
    trained = sum(len(row) - row.prompt_length for row in rows)
    return (
        f"{name:<10} {len(rows):,} rows, {sum(lengths):,} tokens (mean {sum(lengths) / max(1, len(rows)):.0f}, "
        f"longest {max(lengths, default=0):,}), {trained:,} of them trained  [{', '.join(map(str, files))}]"
    )
