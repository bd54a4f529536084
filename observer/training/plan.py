"""What a run is going to do, worked out from shapes and row lengths before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observer.config import Config
from observer.export.checkpoint import Qwen3Shape
from observer.training.device import Runtime
from observer.training.rows import Splits, TokenRow

QWEN3_0_6B = Qwen3Shape(
    block_count=28,
    context_length=40_960,
    embedding_length=1_024,
    feed_forward_length=3_072,
    head_count=16,
    head_count_kv=8,
    rope_freq_base=1e6,
    rms_norm_eps=1e-6,
    key_length=128,
    vocab_size=151_936,
    is_tied=True,
)
"""config.json of Qwen/Qwen3-0.6B, for planning where the model itself is not at hand."""

BYTES_PER_PARAMETER = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
GGUF_BITS = {
    "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.7, "q5_0": 5.5,
    "q4_k_m": 4.85, "q4_0": 4.5, "iq4_xs": 4.25, "q3_k_m": 3.9, "q2_k": 3.0,
}  # fmt: skip
"""Bits a weight of the layers; the tied embedding of the small types is q6_k."""
RUNTIME_BYTES = {"cpu": 900e6, "cuda": 700e6}
"""What the libraries and, on CUDA, its context take before any tensor."""


@dataclass(frozen=True)
class Plan:
    """A run in numbers. Sizes are estimates in bytes; `steps` are optimizer steps."""

    steps: int
    n_parameters: int
    n_trainable: int
    memory_bytes: float
    artefact_bytes: dict[str, float]
    text: str

    def bytes_missing(self, root: Path) -> int:
        """What is still to be written below the run's folder."""
        return int(sum(size for name, size in self.artefact_bytes.items() if not (root / name).exists()))


def make_plan(config: Config, runtime: Runtime, splits: Splits, shape: Qwen3Shape, *, counted_with: str) -> Plan:
    """Work out steps, memory and disk. `counted_with` says where the token counts come from."""
    steps = count_steps(config, len(splits.train))
    n_parameters, n_trainable = count_parameters(shape), count_trainable(shape, config)
    memory_bytes = estimate_memory(config, runtime, splits.train, shape)
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
        describe_rows("train", config.data.train, splits.train),
        describe_rows("val", config.data.val, splits.val),
        f"           counted with {counted_with}; data.max_length {config.data.max_length:,}",
        f"steps      {steps:,} of {rows_per_step(config)} rows, eval loss and checkpoint every "
        f"{config.training.eval_steps}",
        f"memory     about {memory_bytes / 1e9:.1f} GB on {runtime.device}",
        "writes     " + "\n           ".join(f"{name:<42} {size / 1e6:>9,.1f} MB" for name, size in artefacts.items()),
        f"           and up to {n_checkpoints} checkpoints during training, "
        f"{3 * artefacts['adapter/'] / 1e6:,.1f} MB each",
    ]
    artefacts["checkpoints/"] = n_checkpoints * 3 * artefacts["adapter/"]
    return Plan(steps, n_parameters, n_trainable, memory_bytes, artefacts, "\n".join(lines))


def rows_per_step(config: Config) -> int:
    return config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps


def count_steps(config: Config, n_rows: int) -> int:
    """Optimizer steps, as transformers counts them: the last, short batch of an epoch is one too."""
    t = config.training
    if t.max_steps > 0:
        return t.max_steps
    batches = math.ceil(n_rows / t.per_device_train_batch_size)
    return math.ceil(t.num_train_epochs * max(1, math.ceil(batches / t.gradient_accumulation_steps)))


def projections(shape: Qwen3Shape) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of one block."""
    hidden, inner = shape.embedding_length, shape.feed_forward_length
    queries, keys = shape.head_count * shape.key_length, shape.head_count_kv * shape.key_length
    return {
        "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
    }  # fmt: skip


def count_parameters(shape: Qwen3Shape) -> int:
    """Parameters of the base; tied embeddings count once."""
    norms = 2 * shape.embedding_length + 2 * shape.key_length
    block = sum(rows * columns for rows, columns in projections(shape).values()) + norms
    return count_embedding(shape) + shape.block_count * block + shape.embedding_length


def count_embedding(shape: Qwen3Shape) -> int:
    return shape.vocab_size * shape.embedding_length * (1 if shape.is_tied else 2)


def count_trainable(shape: Qwen3Shape, config: Config) -> int:
    """Parameters of the adapter: r * (in + out) for every target of every block."""
    sizes = projections(shape)
    return shape.block_count * sum(config.lora.r * sum(sizes.get(name, ())) for name in config.lora.target_modules)


def estimate_memory(config: Config, runtime: Runtime, rows: Sequence[TokenRow], shape: Qwen3Shape) -> float:
    """Peak bytes of training: weights, adapter with Adam, activations and logits of the longest batch, libraries."""
    width = BYTES_PER_PARAMETER[runtime.dtype]
    batch = config.training.per_device_train_batch_size
    longest = sorted((len(row) for row in rows), reverse=True)[:batch]
    trained = sorted((len(row) - row.prompt_length for row in rows), reverse=True)[:batch]
    body = count_parameters(shape) - count_embedding(shape)
    weights = count_embedding(shape) * width + body * (0.52 if config.model.load_in_4bit else width)
    adapter = 16 * count_trainable(shape, config)  # float32: value, gradient, Adam's two moments
    tokens = batch * max(longest, default=0)
    hidden, queries = shape.embedding_length, shape.head_count * shape.key_length
    block = 6 * hidden + 4 * queries + 4 * shape.head_count_kv * shape.key_length + 4 * shape.feed_forward_length
    sizes = projections(shape)
    block += 2 * sum(sizes[name][0] for name in config.lora.target_modules if name in sizes)  # the adapter's own
    kept = block + hidden * shape.block_count if config.training.gradient_checkpointing else block * shape.block_count
    logits = sum(trained) * shape.vocab_size * 4 * 3  # float32 logits, their softmax and gradient
    return weights + adapter + tokens * kept * width + logits + RUNTIME_BYTES[runtime.device]


def artefact_sizes(config: Config, runtime: Runtime, shape: Qwen3Shape) -> dict[str, float]:
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


def describe_rows(name: str, path: Path, rows: Sequence[TokenRow]) -> str:
    """One line for a split: rows, tokens in all, mean and longest row, trained tokens."""
    lengths = [len(row) for row in rows]
    trained = sum(len(row) - row.prompt_length for row in rows)
    return (
        f"{name:<10} {len(rows):,} rows, {sum(lengths):,} tokens (mean {sum(lengths) / max(1, len(rows)):.0f}, "
        f"longest {max(lengths, default=0):,}), {trained:,} of them trained  [{path}]"
    )
