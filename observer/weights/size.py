"""How large a Qwen3 and its adapter are, from their shapes alone."""

from __future__ import annotations

from dataclasses import replace

from observer.config import Config
from observer.errors import ObserverError
from observer.weights.checkpoint import Qwen3Shape

QWEN3_0_6B = Qwen3Shape(
    block_count=28,
    context_length=40_960,
    embedding_length=1_024,
    feed_forward_length=3_072,
    head_count=16,
    head_count_kv=8,
    rope_freq_base=1e6,
    rms_norm_eps=1e-6,
    key_length=128,
    vocab_size=151_936,
    is_tied=True,
)
"""config.json of Qwen/Qwen3-0.6B, for planning where the model itself is not at hand."""


def projections(shape: Qwen3Shape) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of one block."""
    hidden, inner = shape.embedding_length, shape.feed_forward_length
    queries, keys = shape.head_count * shape.key_length, shape.head_count_kv * shape.key_length
    return {
        "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
    }  # fmt: skip


def count_parameters(shape: Qwen3Shape) -> int:
    """Parameters of the base; tied embeddings count once."""
    norms = 2 * shape.embedding_length + 2 * shape.key_length
    block = sum(rows * columns for rows, columns in projections(shape).values()) + norms
    return count_embedding(shape) + shape.block_count * block + shape.embedding_length


def count_embedding(shape: Qwen3Shape) -> int:
    return shape.vocab_size * shape.embedding_length * (1 if shape.is_tied else 2)


def count_trainable(shape: Qwen3Shape, config: Config) -> int:
    """Parameters of the adapter: r * (in + out) for every target of every block."""
    sizes = projections(shape)
    return shape.block_count * sum(config.lora.r * sum(sizes.get(name, ())) for name in config.lora.target_modules)


QWEN3_1_7B = replace(QWEN3_0_6B, embedding_length=2_048, feed_forward_length=6_144)
QWEN3_4B = replace(QWEN3_0_6B, block_count=36, embedding_length=2_560, feed_forward_length=9_728, head_count=32)
QWEN3_8B = replace(QWEN3_4B, embedding_length=4_096, feed_forward_length=12_288, is_tied=False)
KNOWN_SHAPES = {"qwen3-0.6b": QWEN3_0_6B, "qwen3-1.7b": QWEN3_1_7B, "qwen3-4b": QWEN3_4B, "qwen3-8b": QWEN3_8B}


def known_shape(base: str) -> Qwen3Shape:
    """The shape of a hub id such as `Qwen/Qwen3-4B-Base`. Raises ObserverError for one we do not know."""
    name = base.rpartition("/")[2].casefold().removesuffix("-base")
    if name not in KNOWN_SHAPES:
        raise ObserverError(f"model.base: {base}: not here, so its size is unknown; download it first")
    return KNOWN_SHAPES[name]
