"""Reads a merged Qwen3 folder in Hugging Face format: its shape, and its tensors a few rows at a time.

Rows are read, not mapped: pages of a mapped file would count as memory of ours. Format of the weights:
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from observer.errors import ObserverError, raise_all
from observer.files import parse_json, read_text

CHUNK_ELEMENTS = 1 << 20
"""Elements decoded at a time: 4 MB in float32."""

_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""safetensors' names -> how numpy holds them; it has no bfloat16."""

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

_FRACTIONS = frozenset({"rope_theta", "rms_norm_eps"})
MAX_BLOCKS = 1_000
"""No Qwen3 has a tenth of it; a config with more asks for memory, not for a model."""


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
    """One tensor of the checkpoint under its Hugging Face name; `shape` is (rows, columns) or (length,).

    `dtype` is safetensors' name, such as BF16; `offset` counts bytes from the start of the file.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(_STORED[self.dtype]).itemsize

    def stored_chunks(self) -> Iterator[np.ndarray]:
        """Yield blocks of whole rows, in order, as they are stored; bfloat16 as uint16."""
        dtype, (length, *row_shape) = np.dtype(_STORED[self.dtype]), self.shape
        columns = math.prod(row_shape)
        step = max(1, CHUNK_ELEMENTS // columns)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, length, step):
                n_rows = min(step, length - start)
                data = file.read(n_rows * columns * dtype.itemsize)
                yield np.frombuffer(data, dtype).reshape(n_rows, *row_shape)

    def chunks(self) -> Iterator[np.ndarray]:
        """The same blocks as float32."""
        for block in self.stored_chunks():
            if self.dtype == "BF16":
                yield (block.astype(np.uint32) << 16).view(np.float32)
            else:
                yield block.astype(np.float32, copy=False)


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
    odd = [key for key in _CONFIG_KEYS.values() if not _is_size(config[key], may_be_broken=key in _FRACTIONS)]
    raise_all([f"{path}: {key!r} is {str(config[key])[:40]}; a positive number is expected" for key in odd])
    if config["num_hidden_layers"] > MAX_BLOCKS:
        raise ObserverError(f"{path}: {config['num_hidden_layers']} layers; at most {MAX_BLOCKS} are read")
    values = {field: config[key] for field, key in _CONFIG_KEYS.items()}
    return Qwen3Shape(**values, is_tied=bool(config.get("tie_word_embeddings", False)))


def list_tensors(folder: Path, shape: Qwen3Shape) -> list[Tensor]:
    """All tensors, sorted by name. Raises ObserverError naming every missing, unknown or misshapen one."""
    tensors = [tensor for path in _weight_files(folder) for tensor in _tensors_of(path)]
    found, expected = {tensor.name: tensor for tensor in tensors}, expected_shapes(shape)
    there = found.keys() | ({"lm_head.weight"} if shape.is_tied else set())
    faults = [f"{folder}: tensor {name} is missing" for name in expected if name not in there]
    for tensor in tensors:
        if tensor.name not in expected:
            faults.append(f"{tensor.path}: tensor {tensor.name} has no GGUF name; save a plain merged Qwen3")
        elif tensor.shape != expected[tensor.name]:
            faults.append(f"{tensor.path}: {tensor.name} is {tensor.shape}, config.json says {expected[tensor.name]}")
        elif tensor.dtype not in _STORED:
            faults.append(f"{tensor.path}: {tensor.name} is stored as {tensor.dtype}; save it in 16 or 32 bits")
    raise_all(faults)
    return [found[name] for name in sorted(found)]


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises ObserverError when missing or not a JSON object."""
    try:
        value = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise ObserverError(f"{path}:{error.lineno}: not JSON ({error.msg}); save the model again") from error
    if not isinstance(value, dict):
        raise ObserverError(f"{path}: found a {type(value).__name__}; a JSON object is expected")
    return value


def _rope_theta(path: Path, config: dict[str, Any]) -> float | None:
    # transformers 5 writes rope_parameters; before it, rope_theta and rope_scaling stood at the top
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ObserverError(f"{path}: rope_parameters is no object; save the model again with transformers")
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise ObserverError(f"{path}: rope_type {kind!r} is not converted; use a model with the default RoPE")
    return rope.get("rope_theta", config.get("rope_theta"))


def _is_size(value: Any, *, may_be_broken: bool) -> bool:
    is_number = type(value) is int or (may_be_broken and type(value) is float)
    return is_number and 0 < value < 1 << 40  # NaN is in no order


def expected_shapes(shape: Qwen3Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the architecture under its Hugging Face name, lm_head too when it is tied."""
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
        named = read_json_object(index).get("weight_map")
        names = set(map(str, named.values())) if isinstance(named, dict) else set()
        if not names or any(Path(name).name != name for name in names):
            raise ObserverError(f"{index}: weight_map is to name files of this folder; save the model again")
        paths = [folder / name for name in sorted(names)]
    else:
        paths = [folder / "model.safetensors"]
    mend = "merge or save the model again; only safetensors are read"
    raise_all([f"{path}: no such file; {mend}" for path in paths if not os.path.isfile(path)])
    return paths


def _tensors_of(path: Path) -> list[Tensor]:
    try:
        with safe_open(path, framework="np"):  # checks that the file is whole and its offsets meet
            pass
    except SafetensorError as error:
        raise ObserverError(f"{path}: not a whole safetensors file ({error}); save the model again") from error
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(header_bytes))
    entries.pop("__metadata__", None)
    start = 8 + header_bytes
    return [
        Tensor(name, path, tuple(entry["shape"]), entry["dtype"], start + entry["data_offsets"][0])
        for name, entry in entries.items()
    ]
