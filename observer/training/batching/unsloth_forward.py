"""Unsloth's own forward on CUDA: it replaces the model's, attention included, so a forest goes in its own way.

It drops 4-D masks (in training it drops every mask and counts on causality) and never asks transformers for an
attention function. But it has a place for an attention of shared prefixes, made for GRPO: what the model's attention
finds in the keywords of its forward goes to one function of `attention_dispatch`. Both the finding and the function are
replaced by ours: under Unsloth's own keyword, `prefix_seg_info`, its blocks would not be compiled. Written from unsloth
2026.10.9's source; so it is compared with padded rows before the first batch, and given up for them if the numbers
differ or it does not run.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from observer.errors import ObserverError
from observer.training.batching import varlen
from observer.training.batching.forest import SHORTEST_SHARED_PREFIX, Batch, collate, pad, to_device

if TYPE_CHECKING:
    from peft import PeftModel

LARGEST_DIFFERENCE = 0.03
"""Of the hidden states of both ways, relative to their norm; room for bfloat16's rounding, none for a wrong mask."""
_ATTENTION, _FINDING = "_flex_shared_prefix_attention", "resolve_prefix_seg_info"


def is_in(model: PeftModel) -> bool:
    """Whether the model runs Unsloth's forward; its CPU backend leaves transformers' in place."""
    return "unsloth" in type(model.get_base_model()).forward.__module__


def over_rows(model: PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Hidden states of padded rows, (rows, longest, hidden)."""
    with _hidden_states_returned():
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def over_forest(model: PeftModel, batch: Batch) -> torch.Tensor:
    """Hidden states of a forest, (tokens, hidden)."""
    _route_attention(model)
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    # Without a mask, training takes positions that begin again for rows packed one after the other.
    inputs["attention_mask"] = torch.empty(1, 1, 0, 0, device=model.device) if model.training else None
    # By this name, though it says nothing, a batch may be longer than the longest row.
    inputs["packed_seq_lengths"] = None
    with _hidden_states_returned():
        hidden = model(**inputs, forest=batch["forest"].segments, use_cache=False).logits[0]
    assert len(hidden) == batch["input_ids"].shape[1]
    return hidden


def _route_attention(model: PeftModel) -> None:
    from unsloth.utils import attention_dispatch

    setattr(attention_dispatch, _ATTENTION, _attend)
    setattr(_attention_module(model), _FINDING, _find_segments)


def _attention_module(model: PeftModel) -> ModuleType:
    """Where the forward of the model's attention is written: it looks the finding up there."""
    base: Any = model.get_base_model()
    return sys.modules[type(base.model.layers[0].self_attn).forward.__module__]


def forest_obstacle(model: PeftModel) -> str | None:
    """Why Unsloth's forward cannot take forests here, or None."""
    found = _difference(model)
    if isinstance(found, str):
        return found
    return None if found < LARGEST_DIFFERENCE else f"unsloth's forward over a forest differs by {found:.2g} from rows"


def difference_note(model: PeftModel) -> str:
    """How far both ways are apart, for the log."""
    return f"; {_difference(model):.1g} from padded rows in unsloth's forward"


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def _difference(model: PeftModel) -> float | str:
    """Of hidden states over a forest from those over padded rows, relative; or why the forest cannot be run.

    Tried once a model, on rows made up for it. Raises ObserverError where Unsloth cannot run even the rows.
    """
    from unsloth.utils import attention_dispatch

    instruction, exchange = list(range(SHORTEST_SHARED_PREFIX)), list(range(100, 100 + SHORTEST_SHARED_PREFIX))
    prompts = [[*instruction, *exchange, 6], [*instruction, *exchange, 7], [*instruction, 50], instruction[::-1]]
    rows = [prompt + list(range(60, 60 + length)) for prompt, length in zip(prompts, (2, 5, 3, 4), strict=True)]
    labels = [[-100] * len(prompt) + row[len(prompt) :] for prompt, row in zip(prompts, rows, strict=True)]
    batch = collate([{"input_ids": row, "labels": own} for row, own in zip(rows, labels, strict=True)])
    batch = to_device(batch, model.device)
    padded = pad(batch)
    try:
        expected = over_rows(model, padded.input_ids, padded.attention_mask).flatten(0, 1)[padded.place]
    except Exception as error:  # kernels are compiled and checked here, which raises what it likes
        raise ObserverError(
            f"model.backend: unsloth's forward does not run here ({type(error).__name__}: "
            f"{next(iter(str(error).splitlines()), '')[:200]}); set model.backend=transformers"
        ) from error
    if not (hasattr(attention_dispatch, _ATTENTION) and hasattr(_attention_module(model), _FINDING)):
        return "this unsloth has no place for an attention of shared prefixes"
    try:
        return ((over_forest(model, batch) - expected).float().norm() / expected.float().norm()).item()
    except Exception as error:
        return f"unsloth's forward does not run over a forest here: {type(error).__name__}"


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: varlen.Segments, scale: float | None = None
) -> torch.Tensor:
    """Unsloth's signature: all of (1, tokens, heads, head_dim)."""
    return varlen.attend(query[0], key[0], value[0], segments, scale)[None]


def _find_segments(kwargs: dict[str, Any], *_: object) -> varlen.Segments | None:
    """Unsloth's signature: the forward's keywords, then what may not come with them."""
    return kwargs.get("forest")


@contextmanager
def _hidden_states_returned() -> Iterator[None]:
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"
    try:
        yield
    finally:
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
