"""Attention over a forest: a row's tokens attend to the keys of its instruction, its exchange and its own alone.

Registered with transformers beside its own attention functions. The forest comes down the model's forward as the
keyword `forest`, or its segments alone where one call does (`varlen`); without one, this is transformers' sdpa. Calls
for groups of rows were chosen by measurement over a dense 4-D mask through stock sdpa, which computes what it then
masks: forward and backward took 2.8 to 4.2 times as long (16 rows, one CPU core).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from observer.training.batching import varlen
from observer.training.batching.forest import Forest, RowGroup, Tree
from observer.training.batching.varlen import Segments

if TYPE_CHECKING:
    from peft import PeftModel

FOREST_ATTENTION = "forest"
"""Its name among transformers' attention implementations."""
REPLACEABLE = ("sdpa", "eager", FOREST_ATTENTION)
"""Implementations that compute the same function."""


def attention_obstacle(config: PreTrainedConfig) -> str | None:
    """Why a model's attention cannot be replaced by ours, or None."""
    if config._attn_implementation not in REPLACEABLE:
        return f"attention {config._attn_implementation} cannot be replaced"
    windows = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if windows:
        return f"layers with {', '.join(windows)} cannot be replaced"
    return "attention dropout differs between rows" if getattr(config, "attention_dropout", 0.0) else None


def call_obstacle(model: PeftModel) -> str | None:
    """Why a forest's attention is not one call over this model, or None."""
    config = model.config
    n_heads: int = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    dtype = model.get_input_embeddings().weight.dtype  # the adapter has another
    return varlen.obstacle(model.device, dtype, n_heads, config.num_key_value_heads, head_dim)


def use_forest_attention(config: PreTrainedConfig) -> None:
    """Make the model of this config take forests; what it did without them it still does."""
    config._attn_implementation = FOREST_ATTENTION


def forest_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    forest: Forest | Segments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' signature: `query` is (1, heads, tokens, head_dim), the output (1, tokens, heads, head_dim)."""
    if forest is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if isinstance(forest, Segments):
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        return varlen.attend(query, key, value, forest, scaling)[None], None
    return _attend_in_groups(query, key, value, forest, scaling)  # pyright: ignore[reportCallIssue]  (torch's types)


@torch.compiler.disable  # its calls differ with the rows of every batch
def _attend_in_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, forest: Forest, scaling: float | None
) -> tuple[torch.Tensor, None]:
    states = [part[0].transpose(0, 1) for part in (query, key, value)]  # (tokens, heads, head_dim)
    outputs = []
    for tree in forest.trees:
        if tree.prefix_length:
            outputs.append(_attend([part[None, tree.prefix] for part in states], None, scaling)[0])
        outputs += [_attend_in_rows(states, tree, group, scaling) for group in tree.groups]
    return torch.cat(outputs)[None], None


def _attend_in_rows(states: list[torch.Tensor], tree: Tree, group: RowGroup, scaling: float | None) -> torch.Tensor:
    """Output (tokens of the group, heads, head_dim); keys and values begin with instruction and exchange."""
    rows = [part[group.tokens] for part in states]
    if group.spread is not None:
        rows = [part.index_select(0, group.spread) for part in rows]
    query, key, value = (part.unflatten(0, (group.n_rows, group.longest)) for part in rows)
    before = [[part[tree.prefix].expand(group.n_rows, -1, -1, -1)] * bool(tree.prefix_length) for part in states[1:]]
    if group.stems is not None:
        for parts, part in zip(before, states[1:], strict=True):
            parts.append(part.index_select(0, group.stems).unflatten(0, (group.n_rows, -1)))
    key, value = (torch.cat([*parts, own], dim=1) for parts, own in zip(before, (key, value), strict=True))
    is_masked = bool(tree.prefix_length) or group.stems is not None
    output = _attend([query, key, value], group.mask if is_masked else None, scaling).flatten(0, 1)
    return output if group.gather is None else output.index_select(0, group.gather)


def _attend(states: list[torch.Tensor], mask: torch.Tensor | None, scaling: float | None) -> torch.Tensor:
    """SDPA of (rows, tokens, heads, head_dim), causal where no mask is given."""
    query, key, value = (part.transpose(1, 2) for part in states)
    n_groups = query.shape[1] // key.shape[1]
    if mask is not None and query.is_cuda and n_groups > 1:  # CUDA's fast kernels take no mask with grouped heads
        key, value = (part.repeat_interleave(n_groups, dim=1) for part in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    ).transpose(1, 2)  # fmt: skip


AttentionInterface.register(FOREST_ATTENTION, forest_attention)
AttentionMaskInterface.register(FOREST_ATTENTION, sdpa_mask)
