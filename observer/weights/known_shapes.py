"""Shapes of the released Qwen3 models, from their config.json, for planning where a model is not at hand."""

from __future__ import annotations

from dataclasses import replace

from observer.errors import ObserverError
from observer.weights.checkpoint import Qwen3Shape
from observer.weights.size import QWEN3_0_6B

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
