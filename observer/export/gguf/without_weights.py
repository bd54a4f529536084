"""A GGUF whose tensors are holes: llama.cpp reads its shapes, and no disk is taken."""

from __future__ import annotations

import os
from pathlib import Path

import gguf

from observer.export.gguf.write import FILE_TYPES, add_shape, announce_tensors, padded_bytes, plan_tensors, write_head
from observer.weights.checkpoint import list_tensors, read_shape


def write_hollow_gguf(folder: Path, out: Path) -> Path:
    """Write the head of the f16 GGUF of a Hugging Face folder, without its vocabulary, and zeros for its tensors.

    Enough for the quantizer's dry run, which reads no tensor. Raises ObserverError for a folder that is no Qwen3.
    """
    shape = read_shape(folder)
    tensor_type, file_type = FILE_TYPES["f16"]
    entries = plan_tensors(list_tensors(folder, shape), shape, tensor_type)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    add_shape(writer, shape)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(file_type)
    announce_tensors(writer, entries)
    write_head(writer)
    writer.close()
    total_bytes = sum(padded_bytes(entry.size_bytes) for entry in entries)
    os.truncate(out, out.stat().st_size + total_bytes + gguf.GGUF_DEFAULT_ALIGNMENT)
    return out
