"""What training will take, in bytes and seconds: the tokens that batches come to, times what a token takes here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from observer.config import Config
from observer.training.batching.forest import FILLED_UP_TO, collate
from observer.training.batching.head import CHUNK_BYTES
from observer.training.batching.order import RowSampler
from observer.training.device import Runtime
from observer.training.planning.speed import Speed
from observer.training.rows import Splits, TokenRow
from observer.weights.checkpoint import ModelShape
from observer.weights.size import count_embedding, count_parameters, count_trainable

BYTES_PER_PARAMETER = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
KEPT_BYTES = {"float32": 4.3, "bfloat16": 4.0, "float16": 4.0}
"""Bytes that each activation of a block keeps for the backward pass; autocast keeps many of them in float32 or twice.
Measured on the CPU as resident memory, between models of 2 and 6 blocks of Qwen3-0.6B's shape in bfloat16 and on the
nano base in float32, with adapters on all linear layers."""
HEAP_GROWTH = {"cpu": 1.5, "cuda": 1.0}
"""What activations take after some hundred steps, over what they take in the first ones: batches of many sizes leave
holes in the C library's heap. Measured: 1.4 in float32, 1.7 in bfloat16 on SmolLM2-135M, 1.5 on a Qwen2.5 of 1.5B."""
RUNTIME_BYTES = {"cpu": 900e6, "cuda": 0.0}
"""What the libraries take before any tensor. On CUDA tensors alone are counted: a context takes its memory before the
free memory is asked for, and the peak that a run reports leaves it out."""


@dataclass(frozen=True)
class Work:
    """What one batch has the model compute: tokens through its blocks, and tokens through its head."""

    n_tokens: int
    n_scored: int


def training_work(config: Config, rows: Sequence[TokenRow], n_processes: int = 1) -> list[Work]:
    """The batches of the first epoch, those of all processes added up."""
    are_padded = config.lora.lora_dropout > 0
    batch_size = n_processes * config.training.batch_size
    order = list(RowSampler(rows, batch_size, config.run.seed, are_padded=are_padded))
    return _work([rows[index] for index in order], batch_size, are_padded)


def evaluation_work(config: Config, rows: Sequence[TokenRow]) -> list[Work]:
    """The batches of one evaluation."""
    ordered = sorted(rows, key=lambda row: (row.task, len(row)), reverse=True)
    batch_size = config.training.per_device_eval_batch_size
    return _work(ordered, batch_size, config.lora.lora_dropout > 0)


def estimate_memory(config: Config, runtime: Runtime, work: Sequence[Work], shape: ModelShape) -> float:
    """Peak bytes of training: weights, adapter with Adam, activations and logits of the largest batch, libraries.

    `work` is the run's `training_work`.
    """
    width, n_processes = BYTES_PER_PARAMETER[runtime.dtype], runtime.launch.n_processes
    n_tokens = max((batch.n_tokens for batch in work), default=0) / n_processes
    n_scored = max((batch.n_scored for batch in work), default=0) / n_processes
    if runtime.device == "cuda" and not config.lora.lora_dropout:
        n_tokens = (n_tokens // FILLED_UP_TO + 1) * FILLED_UP_TO
    body = count_parameters(shape) - count_embedding(shape)
    n_parts = n_processes if runtime.launch.shards_weights else 1  # and two blocks at a time are whole
    body = body / n_parts + (2 * body / shape.block_count if n_parts > 1 else 0)
    weights = count_embedding(shape) * width + body * (0.52 if config.model.load_in_4bit else width)
    adapter = 16 * count_trainable(shape, config) / n_parts  # float32: value, gradient, Adam's two moments
    block = KEPT_BYTES[runtime.dtype] * kept_activations(shape)
    if config.training.gradient_checkpointing is True:
        kept = block + width * shape.embedding_length * shape.block_count
    else:
        kept = block * shape.block_count
    logits = min(CHUNK_BYTES[runtime.device], n_scored * shape.vocab_size * 4) * (1 + width / 4)  # see `head`
    activations = HEAP_GROWTH[runtime.device] * n_tokens * kept
    return weights + adapter + activations + logits + RUNTIME_BYTES[runtime.device]


def kept_activations(shape: ModelShape) -> int:
    """Values that a block keeps of each token for the backward pass."""
    hidden, queries, keys = shape.embedding_length, shape.head_count * shape.key_length, shape.key_length
    return 6 * hidden + 4 * queries + 4 * shape.head_count_kv * keys + 4 * shape.feed_forward_length


def estimate_seconds(
    config: Config, runtime: Runtime, splits: Splits, shape: ModelShape, steps: int, speed: Speed
) -> float:
    """Seconds of training with its evaluations; loading and export are not in it."""
    n_processes = runtime.launch.n_processes
    training = training_work(config, splits.train, n_processes)
    evaluation = evaluation_work(config, splits.val)
    is_recomputed = config.training.gradient_checkpointing is True
    token_s = speed.token_s + (speed.token_forward_s if is_recomputed else 0.0)
    epoch_s = sum(w.n_tokens * shape.block_count * token_s + w.n_scored * speed.scored_s for w in training)
    eval_s = sum(
        w.n_tokens * shape.block_count * speed.token_forward_s + w.n_scored * speed.scored_forward_s for w in evaluation
    )
    n_batches = steps * config.training.gradient_accumulation_steps
    n_evals = math.ceil(steps / config.training.eval_steps)  # one more after the last step
    return (n_batches * epoch_s / max(1, len(training)) + n_evals * eval_s) / n_processes


def _work(rows: Sequence[TokenRow], batch_size: int, are_padded: bool) -> list[Work]:
    work = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        if are_padded:
            n_tokens = len(batch) * max(map(len, batch))
        else:
            n_tokens = collate([{"input_ids": r.input_ids, "labels": r.labels} for r in batch])["input_ids"].numel()
        work.append(Work(n_tokens, sum(len(row) - row.prompt_length for row in batch)))
    return work
