"""Fuzz targets for models and their parts: GGUF, safetensors and their configs, tokenizers, adapters."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf

from observer.engine.llama_model import check_is_gguf
from observer.export.gguf.vocabulary import add_vocabulary
from observer.export.quantize.imatrix_file import read_imatrix
from observer.weights.base import check_base
from observer.weights.checkpoint import list_tensors, read_shape
from observer.weights.gguf_header import read_header
from observer.weights.size import count_parameters
from tests.trust.fuzz.files import scratch
from tests.trust.fuzz.texts import accepted


def gguf_files(data: bytes) -> None:
    """The head of a GGUF, and an importance matrix."""
    path = scratch() / "model.gguf"
    path.write_bytes(data)
    accepted(check_is_gguf, path)
    header = accepted(read_header, path)
    if header:
        assert header.tensor_types.keys() == header.tensor_shapes.keys()
    imatrix = accepted(read_imatrix, path)
    for name in imatrix.sums if imatrix else ():
        assert imatrix and imatrix.mean_squares(name).min(initial=0) >= 0


def checkpoints(data: bytes) -> None:
    """A model's folder: config.json, safetensors, and an index where there is one."""
    config, index, weights = data.partition(b"\n%%\n")[0], b"", data.partition(b"\n%%\n")[2]
    if weights.startswith(b"index"):
        index, _, weights = weights.removeprefix(b"index").partition(b"\n%%\n")
    folder = _emptied("model")
    (folder / "config.json").write_bytes(config)
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(_with_length(weights))
    if index:
        (folder / "model.safetensors.index.json").write_bytes(index)
    accepted(check_base, folder)
    shape = accepted(read_shape, folder)
    if shape:
        assert count_parameters(shape) > 0
        for tensor in accepted(list_tensors, folder, shape) or ():
            assert sum(block.nbytes for block in tensor.stored_chunks()) == tensor.size_bytes
            assert tensor.path.resolve().is_relative_to(folder.resolve()), "a file from elsewhere"


def adapters(data: bytes) -> None:
    """A LoRA adapter's folder: adapter_config.json and safetensors."""
    from observer.weights.merge import read_lora

    config, _, weights = data.partition(b"\n%%\n")
    folder = _emptied("adapter")
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(_with_length(weights))
    lora = accepted(read_lora, folder)
    if lora:
        assert math.isfinite(lora.scale)


def tokenizers(data: bytes) -> None:
    """A model's tokenizer.json, on its way into a GGUF."""
    folder = _emptied("tokenizer")
    (folder / "tokenizer.json").write_bytes(data)
    writer = gguf.GGUFWriter(None, "qwen3")
    with contextlib.redirect_stderr(io.StringIO()):
        accepted(add_vocabulary, writer, folder, 600)


def _with_length(weights: bytes) -> bytes:
    """JSON alone becomes the head of a safetensors file, with as many zeros behind it as it speaks of."""
    if not weights.startswith(b"{"):
        return weights
    ends = [0]
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        ends += [entry["data_offsets"][1] for entry in json.loads(weights).values() if _has_offsets(entry)]
    return struct.pack("<Q", len(weights)) + weights + b"\0" * min(max(ends), 1 << 20)


def _has_offsets(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and type(offsets[1]) is int


def _emptied(name: str) -> Path:
    folder = scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
