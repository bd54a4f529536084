"""Reads a model's folder in Hugging Face format: its shape, and its tensors a few rows at a time.

Rows are read, not mapped: pages of a mapped file would count as memory of ours. Format of the weights:
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import SafetensorError, safe_open

from observer.errors import ObserverError, raise_all
from observer.files import parse_json, read_text
from observer.weights.architectures import ARCHITECTURES, Architecture, architecture_of

_LFS_POINTER = b"version https://git-lfs"
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
"""Fields of ModelShape -> keys of config.json."""

_FRACTIONS = frozenset({"rope_theta", "rms_norm_eps"})
_AS_LLAMA_CPP = {"hidden_act": "silu", "use_sliding_window": False, "layer_types": "full_attention"}
"""What llama.cpp computes whatever config.json says."""
MAX_BLOCKS = 1_000
"""No model has a tenth of it; a config with more asks for memory, not for a model."""


@dataclass(frozen=True)
class Llama3Rope:
    """RoPE of type llama3: long waves are stretched by `factor`, short ones are not, and between them it fades in.

    The fields are named as in rope_parameters.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def factors(self, freq_base: float, head_length: int) -> np.ndarray:
        """What llama.cpp divides each frequency by, (head_length / 2,) float32; computed as its converter does."""
        import torch

        frequencies = 1.0 / (freq_base ** (torch.arange(0, head_length, 2, dtype=torch.float32) / head_length))
        waves = 2 * math.pi / frequencies
        turns = self.original_max_position_embeddings / waves
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        faded = 1 / ((1 - smooth) / self.factor + smooth)
        is_short = waves < self.original_max_position_embeddings / self.high_freq_factor
        is_long = waves > self.original_max_position_embeddings / self.low_freq_factor
        return torch.where(is_short, 1.0, torch.where(is_long, self.factor, faded)).float().numpy()


@dataclass(frozen=True)
class ModelShape:
    """What config.json says, under GGUF's names; `model_type` is one of ARCHITECTURES."""

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
    model_type: str = "qwen3"
    scaled_rope: Llama3Rope | None = None

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.model_type]


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

    def stored_chunks(self, together: int = 1) -> Iterator[np.ndarray]:
        """Yield blocks of whole rows, in order, as they are stored; bfloat16 as uint16.

        A block has a multiple of `together` rows.
        """
        dtype, (length, *row_shape) = np.dtype(_STORED[self.dtype]), self.shape
        columns = math.prod(row_shape)
        step = max(1, CHUNK_ELEMENTS // columns // together) * together
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, length, step):
                n_rows = min(step, length - start)
                data = file.read(n_rows * columns * dtype.itemsize)
                yield np.frombuffer(data, dtype).reshape(n_rows, *row_shape)

    def chunks(self, together: int = 1) -> Iterator[np.ndarray]:
        """The same blocks as float32."""
        for block in self.stored_chunks(together):
            if self.dtype == "BF16":
                yield (block.astype(np.uint32) << 16).view(np.float32)
            else:
                yield block.astype(np.float32, copy=False)


def read_shape(folder: Path) -> ModelShape:
    """Raises ObserverError when `folder` is no model of ours, or its config lacks what GGUF needs."""
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists() and not path.exists():
        raise ObserverError(f"{folder}: a LoRA adapter, not a model; merge it into its base first")
    config = read_json_object(path)
    architecture = architecture_of(config.get("model_type"), path)
    if "quantization_config" in config:
        raise ObserverError(f"{path}: quantized weights; merge into the base in 16 or 32 bits")
    raise_all([f"{path}: {key!r} is {str(config[key])[:60]}; llama.cpp computes with {known!r} alone, so take another "
               "model" for key, known in _AS_LLAMA_CPP.items() if _has_other(config.get(key), known)])  # fmt: skip
    rope = _rope_parameters(path, config)
    config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta"))
    add_defaults(path, config, architecture)
    return shape_of_values(path, config, architecture, _scaled_rope(path, rope, architecture))


def shape_of_values(
    place: Path, values: Mapping[str, Any], architecture: Architecture, scaled_rope: Llama3Rope | None
) -> ModelShape:
    """Values under the keys of config.json, checked. Raises ObserverError naming every one that is missing or odd."""
    fix = "save the model again with transformers"
    raise_all([f"{place}: {key!r} is missing; {fix}" for key in _CONFIG_KEYS.values() if values.get(key) is None])
    odd = [key for key in _CONFIG_KEYS.values() if not _is_size(values[key], may_be_broken=key in _FRACTIONS)]
    raise_all([f"{place}: {key!r} is {str(values[key])[:40]}; a positive number is expected" for key in odd])
    if values["num_hidden_layers"] > MAX_BLOCKS:
        raise ObserverError(f"{place}: {values['num_hidden_layers']} layers; at most {MAX_BLOCKS} are read")
    if architecture.has_paired_rows and values["head_dim"] % 2:
        raise ObserverError(f"{place}: 'head_dim' is {values['head_dim']}; an even number is expected")
    sizes = {field: values[key] for field, key in _CONFIG_KEYS.items()}
    is_tied = bool(values.get("tie_word_embeddings", False))
    return ModelShape(**sizes, is_tied=is_tied, model_type=architecture.model_type, scaled_rope=scaled_rope)


def config_values(shape: ModelShape) -> dict[str, Any]:
    """The shape as keys of config.json, without `model_type`; `read_shape` reads the same shape from them."""
    values = {key: getattr(shape, field) for field, key in _CONFIG_KEYS.items() if key != "rope_theta"}
    if not shape.architecture.has_own_head_size:
        values.pop("head_dim")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_freq_base}
    if scaled := shape.scaled_rope:
        rope |= {"rope_type": "llama3"} | asdict(scaled)
    return values | {"rope_parameters": rope, "tie_word_embeddings": shape.is_tied}


def list_tensors(folder: Path, shape: ModelShape) -> list[Tensor]:
    """All tensors, sorted by name. Raises ObserverError naming every missing, unknown or misshapen one."""
    tensors = [tensor for path in _weight_files(folder) for tensor in _tensors_of(path)]
    found, expected = {tensor.name: tensor for tensor in tensors}, expected_shapes(shape)
    there = found.keys() | ({"lm_head.weight"} if shape.is_tied else set())
    faults = [f"{folder}: tensor {name} is missing" for name in expected if name not in there]
    for tensor in tensors:
        if tensor.name not in expected:
            faults.append(f"{tensor.path}: tensor {tensor.name} has no GGUF name; save a plain merged model")
        elif tensor.shape != expected[tensor.name]:
            faults.append(f"{tensor.path}: {tensor.name} is {tensor.shape}, config.json says {expected[tensor.name]}")
        elif tensor.dtype not in _STORED:
            faults.append(f"{tensor.path}: {tensor.name} is stored as {tensor.dtype}; save it in 16 or 32 bits")
    raise_all(faults)
    return [found[name] for name in sorted(found)]


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises ObserverError when missing or not a JSON object."""
    try:
        _check_fetched(path)
        value = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise ObserverError(f"{path}:{error.lineno}: not JSON ({error.msg}); save the model again") from error
    if not isinstance(value, dict):
        raise ObserverError(f"{path}: found a {type(value).__name__}; a JSON object is expected")
    return value


@contextlib.contextmanager
def open_safetensors(path: Path, framework: str, fix: str) -> Iterator[Any]:
    """`safe_open`. Raises ObserverError for a file that is not whole, ending in `fix`."""
    _check_fetched(path)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise ObserverError(f"{path}: not a whole safetensors file ({error}); {fix}") from error


@contextlib.contextmanager
def faults_of_transformers(folder: Path) -> Iterator[None]:
    """What transformers raises while it reads `folder`, and it raises anything, as one line."""
    try:
        yield
    except (ObserverError, MemoryError):
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise ObserverError(f"{folder}: transformers cannot read it ({what}); save the model again") from error


def _check_fetched(path: Path) -> None:
    """Raise ObserverError for what Git LFS leaves in a large file's place until it is fetched."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ObserverError(f"{path}: a Git LFS pointer, not the file; fetch it with `git lfs pull`")


def _has_other(found: Any, known: Any) -> bool:
    """Whether a value, or one of a list's, is neither `known` nor missing."""
    return any(value not in (None, known) for value in (found if isinstance(found, list) else [found]))


def _rope_parameters(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters; before it, rope_theta and rope_scaling stood at the top
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ObserverError(f"{path}: rope_parameters is no object; save the model again with transformers")
    return rope


def _scaled_rope(path: Path, rope: dict[str, Any], architecture: Architecture) -> Llama3Rope | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3" or not architecture.has_scaled_rope:
        raise ObserverError(f"{path}: rope_type {kind!r} is not converted; use a model with the default RoPE")
    values = {field.name: rope.get(field.name) for field in fields(Llama3Rope)}
    raise_all([f"{path}: rope_parameters: {key!r} is {str(value)[:40]}; a positive number is expected"
               for key, value in values.items() if not _is_size(value, may_be_broken=True)])  # fmt: skip
    if values["low_freq_factor"] == values["high_freq_factor"]:
        raise ObserverError(f"{path}: rope_parameters: low_freq_factor equals high_freq_factor; they must differ")
    return Llama3Rope(**values)  # type: ignore[arg-type]


def add_defaults(path: Path, config: dict[str, Any], architecture: Architecture) -> None:
    """What transformers and llama.cpp take where a Llama or a Qwen2 says nothing. Raises ObserverError for a size of a
    head that llama.cpp would not compute with."""
    if architecture.has_head_norms:  # Qwen3's own default is a number, not a rule
        return
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = heads
    if type(hidden) is int and type(heads) is int and heads > 0:
        if config.get("head_dim") is None:
            config["head_dim"] = hidden // heads
        if not architecture.has_own_head_size and config["head_dim"] != hidden / heads:
            raise ObserverError(
                f"{path}: 'head_dim' is {str(config['head_dim'])[:40]}, hidden size / heads is {hidden / heads:g}; "
                "llama.cpp computes with the latter alone, so take another model"
            )


def _is_size(value: Any, *, may_be_broken: bool) -> bool:
    is_number = type(value) is int or (may_be_broken and type(value) is float)
    return is_number and 0 < value < 1 << 40  # NaN is in no order


def expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the architecture under its Hugging Face name, lm_head too when it is tied."""
    hidden, inner, head = shape.embedding_length, shape.feed_forward_length, shape.key_length
    queries, keys = shape.head_count * head, shape.head_count_kv * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if shape.architecture.has_head_norms:
        layer |= {f"self_attn.{name}_norm.weight": (head,) for name in "qk"}
    if shape.architecture.has_qkv_bias:
        layer |= {f"self_attn.{name}_proj.bias": layer[f"self_attn.{name}_proj.weight"][:1] for name in "qkv"}
    table: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (shape.vocab_size, hidden),
    }
    blocks = range(shape.block_count)
    return table | {f"model.layers.{n}.{part}": size for n in blocks for part, size in layer.items()}


def gguf_names(shape: ModelShape) -> dict[str, str]:
    """Hugging Face name -> gguf's, of every tensor of `expected_shapes`."""
    known = gguf.get_tensor_name_map(shape.architecture.gguf_arch, shape.block_count)
    names = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in expected_shapes(shape)}
    assert all(names.values()), "gguf has a name for every tensor"
    return {name: found for name, found in names.items() if found}


def pair_rows(rows: np.ndarray, head_length: int) -> np.ndarray:
    """Whole heads of q or k, as transformers stores them, in GGUF's order; see `Architecture.has_paired_rows`."""
    return rows.reshape(-1, 2, head_length // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpair_rows(rows: np.ndarray, head_length: int) -> np.ndarray:
    """`pair_rows` undone."""
    return rows.reshape(-1, head_length // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


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
    fix = "merge or save the model again; only safetensors are read"
    raise_all([f"{path}: no such file; {fix}" for path in paths if not os.path.isfile(path)])
    return paths


def _tensors_of(path: Path) -> list[Tensor]:
    with open_safetensors(path, "np", "save the model again"):  # checks that the file is whole and its offsets meet
        pass
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(header_bytes))
    entries.pop("__metadata__", None)
    start = 8 + header_bytes
    return [
        Tensor(name, path, tuple(entry["shape"]), entry["dtype"], start + entry["data_offsets"][0])
        for name, entry in entries.items()
    ]
