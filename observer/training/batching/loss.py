"""The one loss: negative log-likelihood of the completion tokens, with logits only where a label is.

It is the same number however rows are batched, in training and in evaluation, on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch

from observer.training.batching import unsloth_forward, varlen
from observer.training.batching.attention import attention_obstacle, call_obstacle, use_forest_attention
from observer.training.batching.forest import Batch, collate, pad, to_device
from observer.training.batching.head import head_nll
from observer.training.multiprocess.sharding import gather_weights
from observer.training.rows import TokenRow

if TYPE_CHECKING:
    from peft import PeftModel


def completion_nll(model: PeftModel, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood in nats of every labelled token, flat, in row order, float32.

    Full logits of 151,936 columns would be most of the memory; the head sees the labelled positions alone.
    """
    scored = batch["scored"]
    targets = batch["labels"][0].index_select(0, scored + 1)
    hidden = hidden_states(model, batch).index_select(0, scored)
    head = cast(torch.nn.Linear, model.get_output_embeddings())
    gather_weights(head)
    return head_nll(hidden, head.weight, targets)


def hidden_states(model: PeftModel, batch: Batch) -> torch.Tensor:
    """What the head reads for each token of the batch, (tokens, hidden)."""
    is_shared, is_unsloth = sharing_obstacle(model) is None, unsloth_forward.is_in(model)
    if is_shared and is_unsloth:
        return unsloth_forward.over_forest(model, batch)
    body = cast(torch.nn.Module, model.get_base_model().model)
    if is_shared:
        use_forest_attention(model.config)
        unread = torch.empty(1, 1, 0, 0, device=model.device)  # a mask of four dimensions is passed on as it is
        forest = batch["forest"] if call_obstacle(model) else batch["forest"].segments
        return body(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], forest=forest,
            attention_mask=unread, use_cache=False,
        ).last_hidden_state[0]  # fmt: skip
    rows = pad(batch)
    run = unsloth_forward.over_rows if is_unsloth else _over_rows
    return run(model, rows.input_ids, rows.attention_mask).flatten(0, 1).index_select(0, rows.place)


def sharing_obstacle(model: PeftModel) -> str | None:
    """Why every row of this model is run with an instruction of its own, padded; None where instructions are shared."""
    dropouts = [getattr(config, "lora_dropout", 0.0) for config in model.peft_config.values()]
    if any(dropouts):
        return f"LoRA dropout {max(dropouts):g} differs between rows"
    if unsloth_forward.is_in(model):
        return call_obstacle(model) or unsloth_forward.forest_obstacle(model)
    return attention_obstacle(model.config)


def layout_line(model: PeftModel) -> str:
    """How batches are laid out and, where instructions are not shared, why."""
    obstacle = sharing_obstacle(model)
    if obstacle is None:
        line = "batches: each instruction once, rows packed without padding"
        if model.device.type != varlen.KERNELS_ON:
            return line
        groups = call_obstacle(model)
        line += f", attention group by group ({groups})" if groups else ", attention in one call"
        return line + (unsloth_forward.difference_note(model) if unsloth_forward.is_in(model) else "")
    return f"batches: rows of like length, padded, each with its instruction ({obstacle})"


@torch.no_grad()
def sum_nll_by_task(
    score: Callable[[Batch], torch.Tensor], rows: Sequence[TokenRow], batch_size: int, device: torch.device
) -> dict[str, tuple[float, int]]:
    """Nats and scored tokens of all rows (`all`) and of each task's; `score` is `completion_nll` of a model."""
    sums: dict[str, float] = {"all": 0.0}
    counts: dict[str, int] = {"all": 0}
    ordered = sorted(rows, key=lambda row: (row.task, len(row)), reverse=True)
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        batch = to_device(collate([{"input_ids": row.input_ids, "labels": row.labels} for row in chunk]), device)
        nll = score(batch).cpu()
        for row, part in zip(chunk, nll.split([len(row) - row.prompt_length for row in chunk]), strict=True):
            for key in ("all", row.task):
                sums[key] = sums.get(key, 0.0) + part.sum().item()
                counts[key] = counts.get(key, 0) + len(part)
    return {key: (sums[key], counts[key]) for key in sums}


def _over_rows(model: PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    body = cast(torch.nn.Module, model.get_base_model().model)
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
