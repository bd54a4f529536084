"""Smaller GGUF types through llama.cpp's own quantizer, and the check that a written GGUF works.

The quantizer runs in a child process: Ctrl-C ends it at once, an abort inside llama.cpp becomes one clear line,
and its log is shown only when it fails.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from observer.errors import ObserverError, raise_all
from observer.export.header import read_header
from observer.files import atomic_path
from observer.llama import BatchToken, LlamaContext, LlamaModel
from observer.paths import PROJECT_ROOT
from observer.prompts import CHAT_TEMPLATE, IM_END, Task, render_exchange, render_prompt

NEED_IMATRIX = frozenset("iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m iq3_xxs iq3_xs q2_k_s".split())
"""Types llama.cpp refuses to write without an importance matrix."""

_NOT_FOR_US = {"nvfp4", "q2_0", "mxfp4_moe", "guessed"}
"""Refused by llama.cpp; unreadable to gguf; plain q8_0 on a dense model; no type at all."""

_UNQUANTIZED = ("f32", "f16", "bf16")
_FALLBACK = re.compile(r"warning: (\S+)\s+- ncols +\d+ not divisible")
_WHY = re.compile(r"error|fail|abort|assert|disabled", re.IGNORECASE)


@dataclass(frozen=True)
class QuantizationReport:
    """What is in a quantized file, read back from it."""

    quantization: str
    size_bytes: int
    tensor_types: dict[str, int]
    fallbacks: tuple[str, ...]
    """`tensor: type` of those whose rows do not divide by the block of the type asked for."""


def file_types() -> dict[str, int]:
    """Name -> llama.cpp's file type, such as `q4_k_m` -> 15, of every type that can be asked for."""
    prefix = re.compile(r"LLAMA_FTYPE_(?:MOSTLY_|ALL_)?")
    constants = {name: value for name, value in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    names = {prefix.sub("", name).lower(): value for name, value in constants.items()}
    return {name: value for name, value in names.items() if name not in _NOT_FOR_US}


def check_quantizations(quantizations: Sequence[str]) -> None:
    """Raise ObserverError naming every type that cannot be made, with the nearest that can."""
    known = file_types()
    faults = []
    for name in quantizations:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
            faults.append(f"unknown quantization {name!r}; {hint}")
        elif name in NEED_IMATRIX:
            faults.append(f"quantization {name!r} needs an importance matrix, not made yet; use iq4_xs or q3_k_m")
    raise_all(faults)


def quantize(source: Path, out: Path, quantization: str) -> QuantizationReport:
    """Write `source` (an f32, f16 or bf16 GGUF) to `out` in another type.

    Raises ObserverError for a type that cannot be made, and with llama.cpp's own words when it fails.
    """
    check_quantizations([quantization])
    known = file_types()
    found = read_header(source).metadata.get("general.file_type")
    if found not in [known[name] for name in _UNQUANTIZED]:
        name = next((name for name, value in known.items() if value == found), found)
        raise ObserverError(f"{source}: found type {name}; quantize from {', '.join(_UNQUANTIZED)}")
    with atomic_path(out) as temporary:
        log = _run_quantizer(source, temporary, known[quantization])
        return _report(quantization, temporary, log)


def verify_gguf(path: Path, *, expected_file_type: str) -> None:
    """Reopen a GGUF of ours: architecture, type, tokenizer and chat template; then decode a prompt with llama.cpp.

    Raises ObserverError naming every key that is not as written.
    """
    expected = {
        "general.architecture": "qwen3",
        "general.file_type": file_types()[expected_file_type],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "end of answer": IM_END,
    }
    found = read_header(path).metadata
    found["end of answer"] = _token(found, "tokenizer.ggml.eos_token_id")
    wrong = [key for key in expected if found.get(key) != expected[key]]
    raise_all([f"{path}: {key} is {found.get(key)!r}, not {expected[key]!r}; export again" for key in wrong])
    _decode_once(path)


def _run_quantizer(source: Path, out: Path, file_type: int) -> str:
    search_path = os.pathsep.join([str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "observer.export.quantize", str(source), str(out), str(file_type)]
    environment = os.environ | {"PYTHONPATH": search_path}
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    log = run.stdout + run.stderr
    if run.returncode != 0:
        why = [line for line in log.splitlines() if _WHY.search(line)] or log.splitlines()[-3:]
        words = "\n  ".join(line.strip() for line in why)
        raise ObserverError(f"{source}: llama.cpp could not quantize it (exit {run.returncode}):\n  {words}")
    return log


def _quantize_here(source: str, out: str, file_type: int) -> int:
    """The child's whole work; llama.cpp logs to stderr."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    return llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.pointer(params))


def _report(quantization: str, path: Path, log: str) -> QuantizationReport:
    types = read_header(path).tensor_types
    fallbacks = tuple(f"{name}: {types[name]}" for name in _FALLBACK.findall(log))
    return QuantizationReport(quantization, path.stat().st_size, dict(Counter(types.values())), fallbacks)


def _token(metadata: dict[str, Any], key: str) -> str | None:
    tokens, number = metadata.get("tokenizer.ggml.tokens", []), metadata.get(key)
    return tokens[number] if number is not None and number < len(tokens) else None


def _decode_once(path: Path) -> None:
    model = LlamaModel(path)
    context = LlamaContext(model, n_ctx=1024, n_seq_max=1, n_threads=2)
    try:
        tokens = model.tokenize(render_prompt(Task.GRADE, render_exchange("Hello", "")))
        batch = [BatchToken(token, place, (0,), place == len(tokens) - 1) for place, token in enumerate(tokens)]
        is_finite = all(np.isfinite(logits).all() for _, logits in context.decode(batch))
    finally:
        context.close()
        model.close()
    if not is_finite:
        raise ObserverError(f"{path}: its logits are not finite; check the merged model, then export again")


if __name__ == "__main__":
    sys.exit(_quantize_here(sys.argv[1], sys.argv[2], int(sys.argv[3])))
