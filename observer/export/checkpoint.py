"""Reads a merged Qwen3 folder in Hugging Face format: its shape, and its tensors a few rows at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from observer.errors import ObserverError, raise_all
from observer.files import read_text

CHUNK_ELEMENTS = 1 << 22
"""Elements decoded at a time: 16 MB in float32."""


_CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads",
    "head_count_kv": "num_key_value_heads",
    "rope_freq_base": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "key_length": "head_dim",
    "vocab_size": "vocab_size",
}
"""Fields of Qwen3Shape -> keys of config.json."""


@dataclass(frozen=True)
class Qwen3Shape:
    """What config.json says, under GGUF's names."""

    block_count: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    rope_freq_base: float
    rms_norm_eps: float
    key_length: int
    vocab_size: int
    is_tied: bool


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint under its Hugging Face name; `shape` is (rows, columns) or (length,)."""

    name: str
    path: Path
    shape: tuple[int, ...]

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield float32 blocks of whole rows, in order."""
        import torch

        length, *row_shape = self.shape
        step = max(1, CHUNK_ELEMENTS // math.prod(row_shape))
        with safe_open(self.path, framework="pt") as file:
            rows = file.get_slice(self.name)
            for start in range(0, length, step):
                yield rows[start : start + step].to(torch.float32).numpy()


def read_shape(folder: Path) -> Qwen3Shape:
    """Raises ObserverError when `folder` is not a Qwen3 model, or its config lacks what GGUF needs."""
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists() and not path.exists():
        raise ObserverError(f"{folder}: a LoRA adapter, not a model; merge it into its base first")
    config = read_json_object(path)
    if config.get("model_type") != "qwen3":
        raise ObserverError(f"{path}: model_type is {config.get('model_type')!r}; only 'qwen3' models are converted")
    if "quantization_config" in config:
        raise ObserverError(f"{path}: quantized weights; merge into the base in 16 or 32 bits")
    config["rope_theta"] = _rope_theta(path, config)
    mend = "save the model again with transformers"
    raise_all([f"{path}: {key!r} is missing; {mend}" for key in _CONFIG_KEYS.values() if config.get(key) is None])
    values = {field: config[key] for field, key in _CONFIG_KEYS.items()}
    return Qwen3Shape(**values, is_tied=bool(config.get("tie_word_embeddings", False)))


def list_tensors(folder: Path, shape: Qwen3Shape) -> list[Tensor]:
    """All tensors, sorted by name. Raises ObserverError naming every missing, unknown or misshapen one."""
    tensors = [tensor for path in _weight_files(folder) for tensor in _tensors_of(path)]
    found, expected = {tensor.name: tensor for tensor in tensors}, _expected_shapes(shape)
    optional = {"lm_head.weight"} if shape.is_tied else set()
    faults = [f"{folder}: tensor {name} is missing" for name in expected if name not in found | dict.fromkeys(optional)]
    for tensor in tensors:
        if tensor.name not in expected:
            faults.append(f"{tensor.path}: tensor {tensor.name} has no GGUF name; save a plain merged Qwen3")
        elif tensor.shape != expected[tensor.name]:
            faults.append(f"{tensor.path}: {tensor.name} is {tensor.shape}, config.json says {expected[tensor.name]}")
    raise_all(faults)
    return [found[name] for name in sorted(found)]


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises ObserverError when missing or not a JSON object."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ObserverError(f"{path}:{error.lineno}: not JSON ({error.msg}); save the model again") from error
    if not isinstance(value, dict):
        raise ObserverError(f"{path}: found a {type(value).__name__}; a JSON object is expected")
    return value


def _rope_theta(path: Path, config: dict[str, Any]) -> float | None:
    # transformers 5 writes rope_parameters; before it, rope_theta and rope_scaling stood at the top
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise ObserverError(f"{path}: rope_type {kind!r} is not converted; use a model with the default RoPE")
    return rope.get("rope_theta", config.get("rope_theta"))


def _expected_shapes(shape: Qwen3Shape) -> dict[str, tuple[int, ...]]:
    hidden, inner, head = shape.embedding_length, shape.feed_forward_length, shape.key_length
    queries, keys = shape.head_count * head, shape.head_count_kv * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    table: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (shape.vocab_size, hidden),
    }
    blocks = range(shape.block_count)
    return table | {f"model.layers.{n}.{part}.weight": size for n in blocks for part, size in layer.items()}


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        paths = [folder / name for name in sorted(set(read_json_object(index).get("weight_map", {}).values()))]
    else:
        paths = [folder / "model.safetensors"]
    mend = "merge or save the model again; only safetensors are read"
    raise_all([f"{path}: no such file; {mend}" for path in paths if not path.is_file()])
    return paths


def _tensors_of(path: Path) -> list[Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return [Tensor(name, path, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise ObserverError(f"{path}: not a whole safetensors file ({error}); save the model again") from error
