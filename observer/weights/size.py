"""How large a model and its adapter are, from their shapes alone."""

from __future__ import annotations

import math
from dataclasses import replace

from observer.config import Config
from observer.errors import ObserverError
from observer.weights.checkpoint import Llama3Rope, ModelShape, expected_shapes

QWEN3_0_6B = ModelShape(
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


def projections(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of one block."""
    of_one_block = expected_shapes(replace(shape, block_count=1)).items()
    return {name.split(".")[-2]: (size[0], size[1]) for name, size in of_one_block if name.endswith("_proj.weight")}


def count_parameters(shape: ModelShape) -> int:
    """Parameters of the base; tied embeddings count once."""
    sizes = {name: math.prod(size) for name, size in expected_shapes(shape).items()}
    return sum(sizes.values()) - (sizes["lm_head.weight"] if shape.is_tied else 0)


def count_embedding(shape: ModelShape) -> int:
    return shape.vocab_size * shape.embedding_length * (1 if shape.is_tied else 2)


def count_trainable(shape: ModelShape, config: Config) -> int:
    """Parameters of the adapter: r * (in + out) for every target of every block."""
    sizes = projections(shape)
    return shape.block_count * sum(config.lora.r * sum(sizes[name]) for name in config.lora.target_modules)


QWEN3_1_7B = replace(QWEN3_0_6B, embedding_length=2_048, feed_forward_length=6_144)
QWEN3_4B = replace(QWEN3_0_6B, block_count=36, embedding_length=2_560, feed_forward_length=9_728, head_count=32)
QWEN3_8B = replace(QWEN3_4B, embedding_length=4_096, feed_forward_length=12_288, is_tied=False)
QWEN2_5_0_5B = replace(
    QWEN3_0_6B, model_type="qwen2", block_count=24, context_length=32_768, embedding_length=896,
    feed_forward_length=4_864, head_count=14, head_count_kv=2, key_length=64,
)  # fmt: skip
SMOLLM2_135M = ModelShape(
    model_type="llama", block_count=30, context_length=8_192, embedding_length=576, feed_forward_length=1_536,
    head_count=9, head_count_kv=3, rope_freq_base=1e5, rms_norm_eps=1e-5, key_length=64, vocab_size=49_152,
    is_tied=True,
)  # fmt: skip
LLAMA_3_2_1B = ModelShape(
    model_type="llama", block_count=16, context_length=131_072, embedding_length=2_048, feed_forward_length=8_192,
    head_count=32, head_count_kv=8, rope_freq_base=5e5, rms_norm_eps=1e-5, key_length=64, vocab_size=128_256,
    is_tied=True, scaled_rope=Llama3Rope(32.0, 1.0, 4.0, 8_192),
)  # fmt: skip
KNOWN_SHAPES = {
    "qwen3-0.6b": QWEN3_0_6B, "qwen3-1.7b": QWEN3_1_7B, "qwen3-4b": QWEN3_4B, "qwen3-8b": QWEN3_8B,
    "qwen2.5-0.5b": QWEN2_5_0_5B, "smollm2-135m": SMOLLM2_135M, "llama-3.2-1b": LLAMA_3_2_1B,
}  # fmt: skip


def known_shape(base: str) -> ModelShape:
    """The shape of a hub id such as `Qwen/Qwen3-4B-Base`. Raises ObserverError for one we do not know."""
    name = base.rpartition("/")[2].casefold().removesuffix("-base").removesuffix("-instruct")
    if name not in KNOWN_SHAPES:
        raise ObserverError(f"model.base: {base}: not here, so its size is unknown; download it first")
    return KNOWN_SHAPES[name]
