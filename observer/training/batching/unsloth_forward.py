"""Unsloth's own forward on CUDA: it replaces the model's, attention included, so a forest goes in its own way.

It drops 4-D masks (in training it drops every mask and counts on causality) and never asks transformers for an
attention function. But it has an attention of shared prefixes, made for GRPO: FlexAttention over a table of segments,
handed down the forward as `prefix_seg_info`. Written from unsloth 2026.10.9's source; so it is compared with padded
rows before the first batch, and given up for them if the numbers differ or it does not run.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from observer.training.batching.forest import Batch, collate, pad, to_device, without_stems

if TYPE_CHECKING:
    from peft import PeftModel

LARGEST_DIFFERENCE = 0.03
"""Of the hidden states of both ways, relative to their norm; room for bfloat16's rounding, none for a wrong mask."""


def is_in(model: PeftModel) -> bool:
    """Whether the model runs Unsloth's forward; its CPU backend leaves transformers' in place."""
    return "unsloth" in type(model.get_base_model()).forward.__module__


def over_rows(model: PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Hidden states of padded rows, (rows, longest, hidden)."""
    with _hidden_states_returned():
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def over_forest(model: PeftModel, batch: Batch) -> torch.Tensor:
    """Hidden states of a forest, (tokens, hidden)."""
    from unsloth.utils.prefix_grouper_kernel import build_seg_info_multigroup

    rows = without_stems(batch)  # its table knows two levels
    segments, _ = build_seg_info_multigroup(rows.trees, batch["input_ids"].device)
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "position_ids": rows.position_ids}
    with _hidden_states_returned():
        return model(**inputs, prefix_seg_info=segments, use_cache=False).logits[0].index_select(0, rows.place)


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def forest_obstacle(model: PeftModel) -> str | None:
    """Why Unsloth's forward cannot take forests here, or None: tried once a model, on rows made up for it."""
    instruction = list(range(40))
    rows = [instruction + list(range(first, first + length)) for first, length in ((50, 9), (70, 30))]
    batch = to_device(collate([{"input_ids": row, "labels": [-100] * 42 + row[42:]} for row in rows]), model.device)
    padded = pad(batch)
    expected = over_rows(model, padded.input_ids, padded.attention_mask).flatten(0, 1)[padded.place]
    try:
        difference = (over_forest(model, batch) - expected).float().norm() / expected.float().norm()
    except Exception as error:  # a kernel that is missing or does not compile raises what it likes
        return f"unsloth's shared-prefix attention does not run here: {type(error).__name__}"
    if not difference < LARGEST_DIFFERENCE:
        return f"unsloth's shared-prefix attention differs by {difference:.2g} from padded rows here"
    return None


@contextmanager
def _hidden_states_returned() -> Iterator[None]:
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"
    try:
        yield
    finally:
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
