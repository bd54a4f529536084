"""A GGUF as a Hugging Face folder: its weights in 16 or 32 bits and its tokenizer, made once and kept in the cache.

Quantized weights become float16: their scales are stored so, and its 11 bits lose less of them than bfloat16's 8.
Format of what is written: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import fcntl
import json
import math
import struct
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGML

from observer.console.progress import show_progress
from observer.errors import ObserverError, raise_all
from observer.files import atomic_path, check_writable, disk_errors_explained, sha256_file, write_json
from observer.paths import cache_folder
from observer.prompts import IM_END, IM_START, Task, render_exchange, render_prompt
from observer.weights.architectures import ARCHITECTURES, ROPE_FACTORS, Architecture, architecture_of_gguf
from observer.weights.checkpoint import (
    CHUNK_ELEMENTS,
    Llama3Rope,
    ModelShape,
    add_defaults,
    config_values,
    expected_shapes,
    gguf_names,
    shape_of_values,
    unpair_rows,
)
from observer.weights.gguf_header import GGUFHeader, read_header
from observer.weights.hostile_texts import HOSTILE_TEXTS
from observer.weights.tokenizer import PRE_TOKENIZERS, as_pretrained, byte_level_bpe

_KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""Keys of config.json -> those of a GGUF, behind its architecture's name."""
_DTYPES = {GGML.F32: "float32", GGML.BF16: "bfloat16", GGML.F16: "float16"}
"""How weights are written: gguf's type, whose name is also safetensors' -> config.json's dtype."""
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}
"""Other names that llama.cpp takes for a pre-tokenizer of ours."""


def dequantized_base(file: Path, base: str, sha256: str | None) -> Path:
    """The folder of this GGUF in the cache, by the file's hash; `base` is how the config calls it.

    Raises ObserverError when the file has another hash than `sha256`, is not whole, or is no model we can train.
    """
    found = sha256_file(file)
    if sha256 is not None and found != sha256:
        raise ObserverError(
            f"model.base: {base}: its SHA-256 is {found}, model.sha256 says {sha256}; get the right file, or change it"
        )
    if file.parent.name == "blobs" and file.name.startswith("sha256-") and file.name != f"sha256-{found}":
        raise ObserverError(f"model.base: {base}: {file} is damaged, its SHA-256 is {found}; pull the model again")
    bases = cache_folder() / "bases"
    folder = bases / found
    with disk_errors_explained(bases):
        bases.mkdir(parents=True, exist_ok=True)
        with (bases / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be writing the same one: then it is there after this
            if not folder.is_dir():
                _convert(file, base, folder)
    return folder


def _convert(file: Path, base: str, folder: Path) -> None:
    header = read_header(file)
    architecture = _architecture(file, header)
    shape = _read_shape(file, header, architecture)
    _check_tensors(file, header, shape)
    tokenizer = _read_tokenizer(file, header)
    kind = _stored_type(header)
    n_bytes = sum(_n_bytes(size, kind) for size in _written(shape).values())
    check_writable(folder.parent, n_bytes, "or set XDG_CACHE_HOME to a folder with more room")
    print(f"{base}: written as {_DTYPES[kind]} weights to {folder}, once", file=sys.stderr)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _write_weights(file, header, shape, kind, temporary / "model.safetensors")
        tokenizer.save_pretrained(str(temporary))
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        names = {"architectures": [architecture.class_name], "model_type": architecture.model_type}
        # Without its version transformers takes a vocabulary of over 100,000 tokens for an old Mistral's, and warns.
        names |= {"dtype": _DTYPES[kind], "transformers_version": version("transformers")}
        write_json(temporary / "config.json", names | config_values(shape) | ids | {"hidden_act": "silu"})
        _check_ids(file, tokenizer)


def _architecture(file: Path, header: GGUFHeader) -> Architecture:
    name = header.metadata.get("general.architecture")
    architecture = architecture_of_gguf(name)
    if architecture is None or header.metadata.get("general.type", "model") != "model":
        what = (
            f"its type is {str(header.metadata.get('general.type', 'model'))[:40]}, its architecture {str(name)[:40]}"
        )
        raise ObserverError(f"{file}: {what}; a model is expected, of architecture {', '.join(ARCHITECTURES)}")
    return architecture


def _read_shape(file: Path, header: GGUFHeader, architecture: Architecture) -> ModelShape:
    prefix, metadata = architecture.gguf_name, header.metadata
    values: dict[str, Any] = {key: metadata.get(f"{prefix}.{name}") for key, name in _KEYS.items()}
    add_defaults(file, values, architecture)
    if values["rope_theta"] is None:
        values["rope_theta"] = 10_000.0
    values |= {
        "vocab_size": len(_list(metadata, "tokens")),
        "tie_word_embeddings": "output.weight" not in header.tensor_types,
    }
    values |= {key: _short(values[key]) for key in ("rms_norm_eps", "rope_theta")}
    scaling = metadata.get(f"{prefix}.rope.scaling.type", "none")
    if scaling != "none" or metadata.get(f"{prefix}.rope.dimension_count", values["head_dim"]) != values["head_dim"]:
        raise ObserverError(f"{file}: its RoPE is not the plain one ({scaling}); take another model")
    shape = shape_of_values(file, values, architecture, None)
    if ROPE_FACTORS not in header.tensor_types or not architecture.has_scaled_rope:
        return shape
    return shape_of_values(file, values, architecture, _scaled_rope(file, header, shape))


def _scaled_rope(file: Path, header: GGUFHeader, shape: ModelShape) -> Llama3Rope:
    """A file holds the factors, not what they are made of: of that, all Llama 3 share all but the largest factor."""
    (factors,) = _rows(file, header, ROPE_FACTORS, 1)
    rope = Llama3Rope(float(factors.max()), 1.0, 4.0, 8192)
    if factors.shape != (shape.key_length // 2,) or not np.allclose(
        factors, rope.factors(shape.rope_freq_base, shape.key_length), rtol=1e-4
    ):
        raise ObserverError(f"{file}: its RoPE factors are not those of Llama 3; take another model")
    return rope


def _written(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    sizes = expected_shapes(shape)
    if shape.is_tied:
        del sizes["lm_head.weight"]
    return sizes


def _check_tensors(file: Path, header: GGUFHeader, shape: ModelShape) -> None:
    """Raise ObserverError naming every tensor that is missing, unknown, misshapen, cut or of an unknown type."""
    sizes, names, file_bytes = _written(shape), gguf_names(shape), file.stat().st_size
    faults, undecodable = [], set()
    for name, size in sizes.items():
        found = header.tensor_shapes.get(names[name])
        if found != size:
            what = "missing" if found is None else f"{found}, its keys say {size}"
            faults.append(f"{file}: tensor {names[name]} is {what}; download or export it again")
            continue
        kind = GGML[header.tensor_types[names[name]]]
        if not _can_decode(kind):
            undecodable.add(kind.name)
        elif header.tensor_places[names[name]] + _n_bytes(size, kind) > file_bytes:
            raise ObserverError(f"{file}: ends inside tensor {names[name]}; download or export it again")
    unknown = header.tensor_types.keys() - {names[name] for name in sizes} - {ROPE_FACTORS}
    faults += [f"{file}: tensor {name} is not one of a {shape.model_type} model" for name in sorted(unknown)]
    if undecodable:
        faults.append(f"{file}: type {', '.join(sorted(undecodable))} cannot be dequantized; take q8_0, q4_k_m or f16")
    raise_all(faults)


def _n_bytes(shape: tuple[int, ...], kind: GGML) -> int:
    return math.prod(gguf.quant_shape_to_byte_shape(shape, kind))


def _can_decode(kind: GGML) -> bool:
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return True


def _stored_type(header: GGUFHeader) -> GGML:
    """Of the weights: as they are stored, else float16."""
    kinds = {kind for name, kind in header.tensor_types.items() if len(header.tensor_shapes[name]) == 2}
    return GGML.F32 if "F32" in kinds else GGML.BF16 if kinds == {"BF16"} else GGML.F16


def _rows(file: Path, header: GGUFHeader, name: str, together: int) -> Iterator[np.ndarray]:
    """A tensor's rows as float32, a multiple of `together` at a time; a vector is one block."""
    kind, shape = GGML[header.tensor_types[name]], header.tensor_shapes[name]
    n_rows, row_bytes = math.prod(shape[:-1]), gguf.quant_shape_to_byte_shape(shape, kind)[-1]
    step = max(1, CHUNK_ELEMENTS // shape[-1] // together) * together
    with file.open("rb") as stream:
        stream.seek(header.tensor_places[name])
        for start in range(0, n_rows, step):
            count = min(step, n_rows - start)
            data = np.frombuffer(stream.read(count * row_bytes), np.uint8).reshape(count, row_bytes)
            rows = gguf.dequantize(data, kind)
            yield rows if len(shape) > 1 else rows[0]


def _write_weights(file: Path, header: GGUFHeader, shape: ModelShape, kind: GGML, out: Path) -> None:
    """A safetensors file, a few rows in memory at a time."""
    sizes, names = _written(shape), gguf_names(shape)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total_bytes = 0
    for name, size in sizes.items():
        end = total_bytes + _n_bytes(size, kind)
        entries[name] = {"dtype": kind.name, "shape": list(size), "data_offsets": [total_bytes, end]}
        total_bytes = end
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    with out.open("wb") as stream, show_progress("base", total_bytes, unit="B") as show:
        stream.write(struct.pack("<Q", len(head)) + head)
        done_bytes = 0
        for name in sizes:
            is_paired = shape.architecture.pairs_rows_of(name.rpartition(".")[0])
            for rows in _rows(file, header, names[name], shape.key_length if is_paired else 1):
                rows = unpair_rows(rows, shape.key_length) if is_paired else rows
                with np.errstate(over="ignore"):  # found and said below
                    data = gguf.quantize(rows, kind)
                if kind == GGML.F16 and not np.isfinite(data).all():
                    raise ObserverError(f"{file}: {names[name]} has values beyond float16; take a file in bf16 or f32")
                stream.write(data.tobytes())
                done_bytes += data.nbytes
                show(done_bytes, total_bytes)


def _read_tokenizer(file: Path, header: GGUFHeader) -> Any:
    from tokenizers import AddedToken

    metadata = header.metadata
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    pre = _ALIASES.get(str(pre), pre)
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ObserverError(
            f"{file}: its tokenizer is {model!r} with {pre!r}; gpt2 with {', '.join(PRE_TOKENIZERS)} is expected"
        )
    tokens, types, merges = (_list(metadata, name) for name in ("tokens", "token_type", "merges"))
    if missing := [token for token in (IM_START, IM_END) if token not in tokens]:
        raise ObserverError(f"{file}: its vocabulary has no {', '.join(missing)}; take a ChatML model")
    pairs = [tuple(merge.split(" ")) for merge in map(str, merges)]
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens) or any(len(pair) != 2 for pair in pairs):
        raise ObserverError(f"{file}: its vocabulary is damaged; download it again")
    known = {
        token: n for n, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != gguf.TokenType.UNUSED
    }
    try:
        tokenizer = byte_level_bpe(PRE_TOKENIZERS[pre], vocab=known, merges=pairs)
    except Exception as error:  # tokenizers raises plain Exception for a merge of tokens that are not there
        raise ObserverError(f"{file}: its vocabulary is damaged ({error}); download it again") from error
    for is_special, kind in ((True, gguf.TokenType.CONTROL), (False, gguf.TokenType.USER_DEFINED)):
        added = [token for token, number in known.items() if types[number] == kind]
        tokenizer.add_tokens([AddedToken(token, special=is_special, normalized=False) for token in added])
    return as_pretrained(tokenizer)


def _check_ids(file: Path, tokenizer: Any) -> None:
    """Raise ObserverError unless hostile prompts have the ids that llama.cpp gives them."""
    from llama_cpp import llama_model_default_params
    from llama_cpp._internals import LlamaModel  # without a context, which warns of a vocabulary alone

    params = llama_model_default_params()
    params.vocab_only = True
    try:
        vocabulary = LlamaModel(path_model=str(file), params=params, verbose=False)
    except ValueError as error:
        raise ObserverError(f"{file}: llama.cpp cannot read its vocabulary; download it again") from error
    try:
        for text in HOSTILE_TEXTS:
            prompt = render_prompt(Task.GRADE, render_exchange(text, text))
            expected = vocabulary.tokenize(prompt.encode(), add_bos=False, special=True)
            if tokenizer(prompt, add_special_tokens=False)["input_ids"] != expected:
                raise ObserverError(f"{file}: {text!r} has other token ids than in llama.cpp; take another model")
    finally:
        vocabulary.close()


def _list(metadata: dict[str, Any], name: str) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, list) else []


def _short(value: Any) -> Any:
    """A float32 as the short decimal it was: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
