"""The one loss: mean negative log-likelihood of the completion tokens, with logits only where a label is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from observer.training.rows import IGNORED, TokenRow

if TYPE_CHECKING:
    from peft import PeftModel

Batch = dict[str, torch.Tensor]
SHORTEST_SHARED_PREFIX = 16
"""Tokens; below it the second pass costs more than it saves."""


def collate(rows: Sequence[dict[str, list[int]]], pad_token_id: int) -> Batch:
    """Pad on the right: `input_ids`, `labels` and `attention_mask`, each (rows, longest)."""
    longest = max(len(row["input_ids"]) for row in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([pad(row["input_ids"], pad_token_id) for row in rows]),
        "labels": torch.tensor([pad(row["labels"], IGNORED) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
    }


def completion_nll(model: PeftModel, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood in nats of every labelled token, flat, in row order, float32.

    Full logits of 151,936 columns would be most of the memory; the head sees the labelled positions alone.
    """
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORED
    hidden = hidden_states(model, batch)[:, :-1][labelled]
    head = cast(torch.nn.Linear, model.get_output_embeddings())
    logits = head(hidden.to(head.weight.dtype))
    return functional.cross_entropy(logits.float(), targets[labelled], reduction="none")


def hidden_states(model: PeftModel, batch: Batch) -> torch.Tensor:
    """What the head reads, (rows, longest, hidden); zero at positions that all rows share and none is scored on."""
    causal_model = model.get_base_model()
    if "unsloth" in type(causal_model).forward.__module__:
        # Unsloth's GPU forward builds the attention bias its kernels need, so go through it, not past it.
        with _unsloth_returns_hidden_states():
            return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    body = cast(torch.nn.Module, causal_model.model)
    n_shared = shared_prefix_length(batch) if can_share_prefix(model) else 0
    if n_shared < SHORTEST_SHARED_PREFIX or len(batch["labels"]) == 1:
        return body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return _after_shared_prefix(body, batch, n_shared)


def shared_prefix_length(batch: Batch) -> int:
    """Leading tokens that all rows share and whose successors none is scored on."""
    is_shared = (batch["input_ids"] == batch["input_ids"][0]).all(0) & (batch["labels"] == IGNORED).all(0)
    n_leading = int(is_shared.cumprod(0).sum())
    first_scored = int((batch["labels"] != IGNORED).any(0).int().argmax())
    return min(n_leading, first_scored - 1)


def can_share_prefix(model: PeftModel) -> bool:
    """Dropout would differ between rows, and checkpointing drops the cache; without them sharing is exact."""
    dropouts = [getattr(config, "lora_dropout", 0.0) for config in model.peft_config.values()]
    return not any(dropouts) and not getattr(model, "is_gradient_checkpointing", False)


def _after_shared_prefix(body: torch.nn.Module, batch: Batch, n_shared: int) -> torch.Tensor:
    """Run the instruction once, not once a row; gradients of all rows meet in its keys and values."""
    ids, n_rows = batch["input_ids"], len(batch["input_ids"])
    cache = DynamicCache()
    prefix = body(input_ids=ids[:1, :n_shared], past_key_values=cache, use_cache=True).last_hidden_state
    for layer in cast(list[DynamicLayer], cache.layers):
        assert layer.keys is not None and layer.values is not None
        layer.keys, layer.values = layer.keys.expand(n_rows, -1, -1, -1), layer.values.expand(n_rows, -1, -1, -1)
    rest = body(
        input_ids=ids[:, n_shared:], attention_mask=batch["attention_mask"], past_key_values=cache, use_cache=True
    ).last_hidden_state
    return torch.cat([torch.zeros_like(prefix).expand(n_rows, -1, -1), rest], dim=1)


@torch.no_grad()
def mean_nll_by_task(
    model: PeftModel, rows: Sequence[TokenRow], batch_size: int, pad_token_id: int
) -> dict[str, float]:
    """Token-mean loss over all rows (`all`) and over each task's; independent of how rows are batched."""
    sums: dict[str, float] = {"all": 0.0}
    counts: dict[str, int] = {"all": 0}
    ordered = sorted(rows, key=lambda row: (row.task, len(row)), reverse=True)
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        batch = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in chunk], pad_token_id)
        nll = completion_nll(model, {name: tensor.to(model.device) for name, tensor in batch.items()}).cpu()
        for row, part in zip(chunk, nll.split([len(row) - row.prompt_length for row in chunk]), strict=True):
            for key in ("all", row.task):
                sums[key] = sums.get(key, 0.0) + part.sum().item()
                counts[key] = counts.get(key, 0) + len(part)
    return {key: sums[key] / counts[key] for key in sums}


@contextmanager
def _unsloth_returns_hidden_states() -> Iterator[None]:
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"
    try:
        yield
    finally:
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
