"""A forest's attention as one call: torch's variable-length attention, whose kernels CUDA has in 16 bits.

Every run of tokens that continues something, an instruction, an exchange, what follows it, is a sequence of queries
where it stands in the batch. Its keys are gathered: all it continues, then itself. Queries and keys end together, so
that causal attention, aligned at the end, is what a token sees. Written without a GPU from torch 2.13's source; so it
is compared with dense attention, gradients included, before the first batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch.nn import functional

LARGEST_DIFFERENCE = 0.02
"""Of output and gradients of both attentions, relative to their norm; bfloat16 rounds to 0.004."""
KERNELS_ON = "cuda"
"""The type of device that has the kernels."""
OLDEST_CAPABILITY = (8, 0)
"""Of the GPUs that have the kernels: Ampere's."""

Span = tuple[int, int]
"""The start of a run of tokens in the batch, and how many they are."""


@dataclass(frozen=True)
class Segments:
    """Index tensors of the call. `keys` are the tokens whose keys the sequences see, one sequence after the other;
    `query_ends` and `key_ends`, (sequences + 1,) int32, say where each ends, and begin with 0."""

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


def segments_of(sequences: Iterable[Sequence[Span]]) -> Segments:
    """Each sequence's spans, its own last; together these own spans are the batch, in order."""
    sequences = list(sequences)
    n_queries = [spans[-1][1] for spans in sequences]
    n_keys = [sum(length for _, length in spans) for spans in sequences]
    keys = np.concatenate([np.arange(start, start + length) for spans in sequences for start, length in spans])
    query_ends, key_ends = (
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (n_queries, n_keys)
    )
    return Segments(torch.from_numpy(keys), query_ends, key_ends, max(n_queries), max(n_keys))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float | None = None
) -> torch.Tensor:
    """Of (tokens, heads, head_dim), key and value with a divisor of query's heads; the output is query's shape."""
    from torch.nn.attention.varlen import varlen_attn

    # The gradient of a shared key is the sum over all that see it: added up in float32.
    key, value = (part.float().index_select(0, segments.keys).to(part.dtype) for part in (key, value))
    return varlen_attn(
        query, key, value, segments.query_ends, segments.key_ends, segments.longest_query, segments.longest_key,
        scale=scale, window_size=(-1, 0), enable_gqa=key.shape[1] != query.shape[1],
    )  # type: ignore[return-value] # fmt: skip


def attend_densely(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float | None = None
) -> torch.Tensor:
    """The same with a mask of tokens times tokens, through any kernel of torch's: slow, and plainly right."""
    sees = torch.zeros(len(query), len(key), dtype=torch.bool, device=query.device)
    query_ends, key_ends = segments.query_ends.tolist(), segments.key_ends.tolist()
    for number in range(len(query_ends) - 1):
        first, last = query_ends[number : number + 2]
        keys = segments.keys[key_ends[number] : key_ends[number + 1]]
        n_queries = last - first
        sees[first:last, keys] = torch.ones(n_queries, len(keys), device=query.device).tril(len(keys) - n_queries) > 0
    states = (part.transpose(0, 1)[None] for part in (query, key, value))
    output = functional.scaled_dot_product_attention(*states, attn_mask=sees, scale=scale, enable_gqa=True)
    return output[0].transpose(0, 1)


@functools.lru_cache
def obstacle(device: torch.device, dtype: torch.dtype, n_heads: int, n_key_heads: int, head_dim: int) -> str | None:
    """Why the call cannot be used for heads of this shape, or None: tried once, forward and backward."""
    if device.type != KERNELS_ON:
        return "the device is no GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"there are no kernels for {dtype}".replace("torch.", "")
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return "the GPU is older than Ampere"
    try:
        difference = try_out(device, dtype, n_heads, n_key_heads, head_dim)
    except Exception as error:  # a kernel that is missing raises what it likes
        return f"variable-length attention does not run here: {type(error).__name__}"
    if not difference < LARGEST_DIFFERENCE:
        return f"variable-length attention differs by {difference:.2g} from dense attention here"
    return None


@torch.enable_grad()
def try_out(device: torch.device, dtype: torch.dtype, n_heads: int, n_key_heads: int, head_dim: int) -> float:
    """The largest difference, of the output or a gradient, from dense attention in float32 on the same values."""
    prefix, stem = (0, 70), (70, 40)  # an instruction and an exchange, asked two things, then a row alone
    segments = segments_of(
        [[prefix], [prefix, stem], [prefix, stem, (110, 9)], [prefix, stem, (119, 150)], [(269, 60)]]
    )
    on_device = {name: part.to(device) for name, part in vars(segments).items() if isinstance(part, torch.Tensor)}
    segments = replace(segments, **on_device)
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(329, heads, head_dim, generator=generator).to(device, dtype)
        for heads in (n_heads, n_key_heads, n_key_heads, n_heads)
    ]
    found, expected = (
        _output_and_gradients(attention, [part.to(precision) for part in values], segments)
        for attention, precision in ((attend, dtype), (attend_densely, torch.float32))
    )
    differences = [(part.float() - known).norm() / known.norm() for part, known in zip(found, expected, strict=True)]
    return torch.stack(differences).max().item()


def _output_and_gradients(
    attention: object, values: list[torch.Tensor], segments: Segments
) -> tuple[torch.Tensor, ...]:
    *states, upstream = values
    states = [part.detach().requires_grad_() for part in states]
    output = attention(*states, segments)  # type: ignore[operator]
    return output.detach(), *torch.autograd.grad(output, states, upstream)
