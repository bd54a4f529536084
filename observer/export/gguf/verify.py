"""The checks of a written GGUF that need nothing but the file: it is whole, ours, and llama.cpp decodes with it.

What needs the model it was made of is `against_transformers`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from observer.engine.llama_context import BatchToken, LlamaContext, Logits
from observer.engine.llama_model import LlamaModel, usable_cores
from observer.errors import ObserverError, raise_all
from observer.prompts import CHAT_TEMPLATE, IM_END, Task, render_exchange, render_prompt
from observer.weights.architectures import ROPE_FACTORS, Architecture, architecture_of_gguf
from observer.weights.checkpoint import gguf_names
from observer.weights.gguf_header import GGUFHeader, read_header
from observer.weights.gguf_types import UNQUANTIZED, file_types
from observer.weights.size import QWEN3_0_6B
from observer.weights.tokenizer import PRE_TOKENIZERS

_MAY_BE_TIED = "output.weight"


def verify_gguf(path: Path, *, expected_file_type: str) -> GGUFHeader:
    """Reopen a GGUF of ours: architecture, type, tensors, tokenizer and chat template; then decode a prompt.

    Raises ObserverError naming every key and tensor that is not as written.
    """
    header = read_header(path)
    raise_all([f"{path}: {fault}; export again" for fault in header_faults(header, expected_file_type)])
    _decode_once(path)
    return header


def header_faults(header: GGUFHeader, file_type: str) -> list[str]:
    """What in the head of a file is not as our export writes it in this type."""
    expected = {
        "general.file_type": file_types()[file_type],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "end of answer": IM_END,
    }
    found = header.metadata | {"end of answer": _token(header.metadata, "tokenizer.ggml.eos_token_id")}
    wrong = [
        f"{key} is {found.get(key)!r}, not {value!r}" for key, value in expected.items() if found.get(key) != value
    ]
    if header.metadata.get("tokenizer.ggml.pre") not in PRE_TOKENIZERS:
        wrong.append(f"tokenizer.ggml.pre is {header.metadata.get('tokenizer.ggml.pre')!r}, not one of ours")
    architecture = architecture_of_gguf(header.metadata.get("general.architecture"))
    if architecture is None:
        return [*wrong, f"general.architecture is {header.metadata.get('general.architecture')!r}, not one of ours"]
    return wrong + _tensor_faults(header, architecture, file_type)


def _tensor_faults(header: GGUFHeader, architecture: Architecture, file_type: str) -> list[str]:
    n_blocks = header.metadata.get(f"{architecture.gguf_name}.block_count", 0)
    known = replace(QWEN3_0_6B, model_type=architecture.model_type, block_count=max(1, n_blocks))
    expected, found = set(gguf_names(known).values()), set(header.tensor_types)
    may_be_there = {ROPE_FACTORS} if architecture.has_scaled_rope else set()
    faults = [f"tensor {name} is missing" for name in sorted(expected - found - {_MAY_BE_TIED})]
    faults += [
        f"tensor {name} is not one of a {architecture.model_type} model"
        for name in sorted(found - expected - may_be_there)
    ]
    for name, kind in header.tensor_types.items():
        if (wanted := _wanted_type(file_type, header.tensor_shapes[name])) not in (None, kind):
            faults.append(f"tensor {name} is {kind}, not {wanted}")
    return faults


def _wanted_type(file_type: str, shape: tuple[int, ...]) -> str | None:
    """The type a tensor must have; None where it is the quantizer's to choose."""
    if len(shape) == 1:
        return "F32"
    return file_type.upper() if file_type in UNQUANTIZED else None


def _token(metadata: dict[str, Any], key: str) -> str | None:
    tokens, number = metadata.get("tokenizer.ggml.tokens", []), metadata.get(key)
    return tokens[number] if number is not None and number < len(tokens) else None


def last_logits(model: LlamaModel, tokens: Sequence[int], n: int = 1) -> Logits:
    """(n, vocabulary), of the last positions of a prompt."""
    batch = [BatchToken(token, place, (0,), place >= len(tokens) - n) for place, token in enumerate(tokens)]
    with contextlib.closing(LlamaContext(model, n_ctx=2048, n_seq_max=1, n_threads=usable_cores())) as context:
        return np.stack([logits.copy() for _, logits in context.decode(batch)])


def _decode_once(path: Path) -> None:
    with contextlib.closing(LlamaModel(path)) as model:
        logits = last_logits(model, model.tokenize(render_prompt(Task.GRADE, render_exchange("Hello", ""))))
    if not np.isfinite(logits).all():
        raise ObserverError(f"{path}: its logits are not finite; check the merged model, then export again")
