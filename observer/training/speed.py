"""How fast this machine computes a model of some shape: one block and a piece of the head, run for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from observer.config import Config
from observer.export.checkpoint import Qwen3Shape
from observer.training.device import Runtime
from observer.training.size import projections

if TYPE_CHECKING:
    import torch

ROW_LENGTH = 128
"""Tokens of the calibration's rows."""
FLOPS_ON_CPU = 8e9
"""Of one timed run: some tenths of a second on a slow core."""
LARGEST_HEAD_PIECE = 8_192
"""Columns of the vocabulary; the time of the whole head is in proportion."""


@dataclass(frozen=True)
class Speed:
    """Seconds: of a token in one block and of a scored token in the head, with the backward pass and without it."""

    token_s: float
    token_forward_s: float
    scored_s: float
    scored_forward_s: float


def measure_speed(config: Config, runtime: Runtime, shape: Qwen3Shape, n_tokens: int) -> Speed | None:
    """Time a block with its adapter on about as many tokens as a batch has, in the run's precision.

    None where the run's device is not here. Weights are random and 16- or 32-bit; leaves torch's random state alone.
    """
    import torch

    if runtime.device == "cuda" and not torch.cuda.is_available():
        return None
    n_rows = _n_rows(runtime, shape, n_tokens)
    with torch.random.fork_rng(devices=[]):
        block, block_forward = _time_both(_block_run(config, runtime, shape, n_rows), runtime)
        head, head_forward = _time_both(_head_run(runtime, shape), runtime)
    n_calibrated, columns = n_rows * ROW_LENGTH, shape.vocab_size / min(shape.vocab_size, LARGEST_HEAD_PIECE)
    per_scored = columns / ROW_LENGTH
    return Speed(block / n_calibrated, block_forward / n_calibrated, head * per_scored, head_forward * per_scored)


def _n_rows(runtime: Runtime, shape: Qwen3Shape, n_tokens: int) -> int:
    wanted = max(1, round(n_tokens / ROW_LENGTH))
    if runtime.device == "cuda":
        return wanted
    flops = 4 * ROW_LENGTH * sum(rows * columns for rows, columns in projections(shape).values())
    return max(1, min(wanted, int(FLOPS_ON_CPU / flops)))


def _block_run(config: Config, runtime: Runtime, shape: Qwen3Shape, n_rows: int) -> Callable[[], torch.Tensor]:
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import Qwen3Config, Qwen3Model

    from observer.training.model import lora_settings

    dtype = getattr(torch, runtime.dtype)
    model = Qwen3Model(
        Qwen3Config(
            vocab_size=2, hidden_size=shape.embedding_length, intermediate_size=shape.feed_forward_length,
            num_hidden_layers=1, num_attention_heads=shape.head_count, num_key_value_heads=shape.head_count_kv,
            head_dim=shape.key_length,
        )
    )  # fmt: skip
    model = model.to(device=runtime.device, dtype=dtype)  # type: ignore[call-arg, arg-type]
    inject_adapter_in_model(LoraConfig(**lora_settings(config)), model)  # type: ignore[arg-type]
    hidden = torch.randn(n_rows, ROW_LENGTH, shape.embedding_length, device=runtime.device, dtype=dtype)
    hidden.requires_grad_()  # of all blocks but the first, the input has a gradient
    return lambda: model(inputs_embeds=hidden, use_cache=False).last_hidden_state.float().sum()


def _head_run(runtime: Runtime, shape: Qwen3Shape) -> Callable[[], torch.Tensor]:
    import torch
    from torch.nn import functional

    dtype, columns = getattr(torch, runtime.dtype), min(shape.vocab_size, LARGEST_HEAD_PIECE)
    weight = torch.randn(columns, shape.embedding_length, device=runtime.device, dtype=dtype)
    hidden = torch.randn(ROW_LENGTH, shape.embedding_length, device=runtime.device, dtype=dtype, requires_grad=True)
    targets = torch.zeros(ROW_LENGTH, dtype=torch.long, device=runtime.device)
    return lambda: functional.cross_entropy((hidden @ weight.T).float(), targets)


def _time_both(run: Callable[[], torch.Tensor], runtime: Runtime) -> tuple[float, float]:
    """Seconds of forward and backward, and of forward alone; each run once before it is timed."""
    import torch

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        run().backward()

    with torch.autocast(runtime.device, getattr(torch, runtime.dtype), enabled=runtime.dtype != "float32"):
        return _time(both, runtime), _time(forward, runtime)


def _time(run: Callable[[], None], runtime: Runtime) -> float:
    import torch

    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        run()
        if runtime.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
