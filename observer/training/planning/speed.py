"""How fast this machine computes a model of some shape: one block and a piece of the head, run for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from observer.config import Config
from observer.training.device import Runtime
from observer.weights.checkpoint import ModelShape, config_values
from observer.weights.size import projections

if TYPE_CHECKING:
    import torch

ROW_LENGTH = 256
"""Tokens of the calibration's rows, where it can afford them: about as many as our rows have."""
SCORED_TOKENS = 128
"""Tokens of the calibration's head."""
FLOPS_ON_CPU = 5e9
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


def measure_speed(config: Config, runtime: Runtime, shape: ModelShape, n_tokens: int) -> Speed | None:
    """Time a block with its adapter on about as many tokens as a batch has, in the run's precision.

    None where the run's device is not here. Weights are random and 16- or 32-bit; leaves torch's random state alone.
    """
    import torch

    if runtime.device == "cuda" and not torch.cuda.is_available():
        return None
    rows = _affordable(runtime, shape, n_tokens)
    with torch.random.fork_rng(devices=[]):
        block, block_forward = _time_both(_block_run(config, runtime, shape, rows), runtime)
        head, head_forward = _time_both(_head_run(runtime, shape), runtime)
    per_token = 1 / (rows[0] * rows[1])
    per_scored = shape.vocab_size / min(shape.vocab_size, LARGEST_HEAD_PIECE) / SCORED_TOKENS
    return Speed(block * per_token, block_forward * per_token, head * per_scored, head_forward * per_scored)


def _affordable(runtime: Runtime, shape: ModelShape, n_tokens: int) -> tuple[int, int]:
    """Rows and their length: about `n_tokens` in all, fewer where a CPU would take long."""
    if runtime.device == "cpu":
        flops = 4 * sum(outputs * inputs for outputs, inputs in projections(shape).values())
        n_tokens = min(n_tokens, int(FLOPS_ON_CPU / flops))
    row_length = max(16, min(ROW_LENGTH, n_tokens))
    return max(1, round(n_tokens / row_length)), row_length


def _block_run(
    config: Config, runtime: Runtime, shape: ModelShape, rows: tuple[int, int]
) -> Callable[[], torch.Tensor]:
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoConfig, AutoModel

    from observer.training.model import lora_settings

    dtype = getattr(torch, runtime.dtype)
    one_block = config_values(replace(shape, block_count=1, vocab_size=8))
    model = AutoModel.from_config(AutoConfig.for_model(shape.model_type, **one_block))
    model = model.to(device=runtime.device, dtype=dtype)  # type: ignore[call-arg, arg-type]
    inject_adapter_in_model(LoraConfig(**lora_settings(config)), model)  # type: ignore[arg-type]
    hidden = torch.randn(*rows, shape.embedding_length, device=runtime.device, dtype=dtype)
    hidden.requires_grad_()  # of all blocks but the first, the input has a gradient
    return lambda: model(inputs_embeds=hidden, use_cache=False).last_hidden_state.float().sum()


def _head_run(runtime: Runtime, shape: ModelShape) -> Callable[[], torch.Tensor]:
    import torch
    from torch.nn import functional

    dtype, columns = getattr(torch, runtime.dtype), min(shape.vocab_size, LARGEST_HEAD_PIECE)
    weight = torch.randn(columns, shape.embedding_length, device=runtime.device, dtype=dtype)
    hidden = torch.randn(SCORED_TOKENS, shape.embedding_length, device=runtime.device, dtype=dtype, requires_grad=True)
    targets = torch.zeros(SCORED_TOKENS, dtype=torch.long, device=runtime.device)
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
