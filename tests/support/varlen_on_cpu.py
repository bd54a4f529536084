"""CPU kernels for torch's variable-length attention, which has them for CUDA alone: a sequence at a time.

Written from the documentation of `torch.nn.attention.varlen` and FlashAttention: a causal mask is aligned at the end.
Importing this registers them, so that all around the kernels runs as it does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention.varlen import _varlen_attn, _varlen_attn_backward

Part = tuple[slice, slice]


def _sequences(query_ends: torch.Tensor, key_ends: torch.Tensor) -> Iterator[Part]:
    bounds = [ends.tolist() for ends in (query_ends, key_ends)]
    for number in range(len(bounds[0]) - 1):
        yield tuple(slice(*ends[number : number + 2]) for ends in bounds)  # type: ignore[misc]


def _weights(query: torch.Tensor, key: torch.Tensor, scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(heads, queries, keys), and their log-sum-exp; a query sees the keys up to its own place from the end."""
    scores = query.transpose(0, 1) @ key.permute(1, 2, 0) * (scale or query.shape[-1] ** -0.5)
    sees = torch.ones_like(scores[0], dtype=torch.bool).tril(len(key) - len(query))
    scores = scores.masked_fill(~sees, float("-inf"))
    return scores.softmax(-1), scores.logsumexp(-1)


def _wide(key: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


@_varlen_attn.register_kernel("cpu")
def forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, is_causal: bool = False, scale: float | None = None, window_size: Any = None,
    enable_gqa: bool = False, *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    assert is_causal and cu_seq_q[-1] == len(query) and cu_seq_k[-1] == len(key)
    assert max_q >= cu_seq_q.diff().max() and max_k >= cu_seq_k.diff().max()
    assert enable_gqa or query.shape[1] == key.shape[1]
    output, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for queries, keys in _sequences(cu_seq_q, cu_seq_k):
        weights, sums[:, queries] = _weights(query[queries], _wide(key[keys], query), scale)
        output[queries] = (weights @ _wide(value[keys], query).transpose(0, 1)).transpose(0, 1)
    return output, sums, torch.zeros(2, dtype=torch.uint64)


@_varlen_attn_backward.register_kernel("cpu")
def backward(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    lse: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor, max_q: int, max_k: int, is_causal: bool,
    rng_state: torch.Tensor, scale: float | None = None, window_size: Any = None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    gradients = [torch.zeros_like(part) for part in (query, key, value)]
    for queries, keys in _sequences(cu_seq_q, cu_seq_k):
        parts = query[queries], key[keys], value[keys], grad_out[queries], out[queries]
        for whole, place, own in zip(gradients, (queries, keys, keys), _gradients(*parts, scale), strict=True):
            whole[place] = own
    return tuple(gradients)


def _gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, upstream: torch.Tensor, output: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Of one sequence, as in the FlashAttention paper; the gradients of a shared key head are added up."""
    wide_key, wide_value, upstream_t = (
        part.transpose(0, 1) for part in (_wide(key, query), _wide(value, query), upstream)
    )
    weights, _ = _weights(query, _wide(key, query), scale)
    for_weights = upstream_t @ wide_value.mT
    for_scores = weights * (for_weights - (upstream * output).sum(-1).mT[..., None])
    for_scores = for_scores * (scale or query.shape[-1] ** -0.5)
    of_query = (for_scores @ wide_key).transpose(0, 1)
    of_key, of_value = (
        (part @ whole).transpose(0, 1).unflatten(1, (key.shape[1], -1)).sum(2)
        for part, whole in ((for_scores.mT, query.transpose(0, 1)), (weights.mT, upstream_t))
    )
    return of_query, of_key, of_value
