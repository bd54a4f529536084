"""Our own converter: a model's folder to one GGUF file, with the tensors llama.cpp's converter writes.

It streams a few rows at a time, so memory does not grow with the model. `quantize` makes the smaller types from
its output.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from observer.console.progress import show_progress
from observer.errors import ObserverError
from observer.export.gguf.vocabulary import add_vocabulary
from observer.files import atomic_path
from observer.weights.architectures import ROPE_FACTORS
from observer.weights.checkpoint import ModelShape, Tensor, gguf_names, list_tensors, pair_rows, read_shape
from observer.weights.tokenizer import tokenizer_json

FILE_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""Types we write ourselves; llama.cpp quantizes to the others."""


@dataclass(frozen=True)
class Computed:
    """A tensor that is in no checkpoint: float32 `values`, which llama.cpp wants in a file."""

    values: np.ndarray
    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def stored_chunks(self, together: int = 1) -> Iterator[np.ndarray]:
        yield self.values

    chunks = stored_chunks


@dataclass(frozen=True)
class Entry:
    """A tensor with its name and type in the GGUF; `head_length` where the rows of its heads are paired there."""

    tensor: Tensor | Computed
    name: str
    type: GGMLQuantizationType
    head_length: int | None = None

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return gguf.quant_shape_to_byte_shape(self.tensor.shape, self.type)

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.byte_shape))

    def encode(self) -> Iterator[np.ndarray]:
        """Yield the bytes of the tensor, a block of rows at a time."""
        is_stored_so = self.tensor.dtype == self.type.name
        read = self.tensor.stored_chunks if is_stored_so else self.tensor.chunks
        for rows in read(self.head_length or 1):
            ordered = pair_rows(rows, self.head_length) if self.head_length else rows
            yield np.ascontiguousarray(ordered) if is_stored_so else gguf.quants.quantize(ordered, self.type)


def write_gguf(merged: Path, out: Path, file_type: str = "f16", *, name: str) -> Path:
    """Convert the folder `merged` to the GGUF file `out`; `name` becomes general.name.

    Raises ObserverError for a folder that is not a whole model with a tokenizer that llama.cpp has too.
    """
    if file_type not in FILE_TYPES:
        raise ObserverError(f"unknown GGUF type {file_type!r}; converted are {', '.join(FILE_TYPES)}")
    tensor_type, llama_file_type = FILE_TYPES[file_type]
    shape = read_shape(merged)
    entries = plan_tensors(list_tensors(merged, shape), shape, tensor_type)
    with atomic_path(out) as temporary:
        with contextlib.closing(gguf.GGUFWriter(temporary, shape.architecture.gguf_name)) as writer:
            for entry in entries:
                writer.add_tensor_info(entry.name, entry.byte_shape, np.dtype(np.uint8), entry.size_bytes, entry.type)
            _add_metadata(writer, shape, name, llama_file_type)
            add_vocabulary(writer, merged, shape.vocab_size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        with temporary.open("ab") as file:
            _append(file, entries, out.name)
    return out


def gguf_bytes(merged: Path, file_type: str, tokenizer: Path | None = None) -> int:
    """The size that `write_gguf` will write, but for the head with the vocabulary, bounded by the tokenizer's file.

    `tokenizer` is the folder that it is in when that is another.
    """
    shape = read_shape(merged)
    entries = plan_tensors(list_tensors(merged, shape), shape, FILE_TYPES[file_type][0])
    head_bytes = tokenizer_json(tokenizer or merged).stat().st_size + 40 * shape.vocab_size
    return head_bytes + sum(padded_bytes(entry.size_bytes) for entry in entries)


def plan_tensors(tensors: list[Tensor], shape: ModelShape, wanted: GGMLQuantizationType) -> list[Entry]:
    """Every tensor as it will be in the file, `wanted` where its kind and its rows allow."""
    names, entries = gguf_names(shape), []
    if shape.scaled_rope:
        factors = Computed(shape.scaled_rope.factors(shape.rope_freq_base, shape.key_length))
        entries.append(Entry(factors, ROPE_FACTORS, GGMLQuantizationType.F32))
    for tensor in tensors:
        name, module = names[tensor.name], tensor.name.rpartition(".")[0]
        head_length = shape.key_length if shape.architecture.pairs_rows_of(module) else None
        entries.append(Entry(tensor, name, _type_of(name, tensor.shape, wanted), head_length))
    return entries


def _type_of(name: str, shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return GGMLQuantizationType.F32
    block_size, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block_size == 0 else GGMLQuantizationType.F16


def _add_metadata(writer: gguf.GGUFWriter, shape: ModelShape, name: str, file_type: LlamaFileType) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    add_shape(writer, shape)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_shape(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    """The keys that tell llama.cpp the model's sizes, in its converter's order."""
    writer.add_block_count(shape.block_count)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.embedding_length)
    writer.add_feed_forward_length(shape.feed_forward_length)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.head_count_kv)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    if shape.architecture.has_own_head_size:
        writer.add_key_length(shape.key_length)
        writer.add_value_length(shape.key_length)
    if shape.architecture.says_rope_size:
        writer.add_vocab_size(shape.vocab_size)
        writer.add_rope_dimension_count(shape.key_length)


def _append(file: BinaryIO, entries: list[Entry], label: str) -> None:
    """Write the tensors behind the head, each at the next multiple of the alignment, as the head says."""
    total_bytes = sum(entry.size_bytes for entry in entries)
    with show_progress(label, total_bytes, unit="B") as show:
        done_bytes = 0
        _pad(file)
        for entry in entries:
            for block in entry.encode():
                file.write(block.data)
                done_bytes += block.nbytes
                show(done_bytes, total_bytes)
            _pad(file)


def _pad(file: BinaryIO) -> None:
    position = file.tell()
    file.write(bytes(padded_bytes(position) - position))


def padded_bytes(size_bytes: int) -> int:
    """With the gap to the next tensor."""
    return gguf.GGUFWriter.ggml_pad(size_bytes, gguf.GGUF_DEFAULT_ALIGNMENT)
