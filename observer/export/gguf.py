"""Our own converter: a merged Qwen3 folder to one GGUF file, with the tensors llama.cpp's converter writes.

It streams a few rows at a time, so memory does not grow with the model. `quantize` makes the smaller types from
its output.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from observer.errors import ObserverError
from observer.export.checkpoint import Qwen3Shape, Tensor, list_tensors, read_shape
from observer.export.vocabulary import add_vocabulary
from observer.files import atomic_path

FILE_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""Types we write ourselves; llama.cpp quantizes to the others."""

SECONDS_BETWEEN_LINES = 10


@dataclass(frozen=True)
class _Entry:
    """A tensor with its name and type in the GGUF."""

    tensor: Tensor
    name: str
    type: GGMLQuantizationType

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return gguf.quant_shape_to_byte_shape(self.tensor.shape, self.type)

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.byte_shape))

    def encode(self) -> Iterator[np.ndarray]:
        """Yield the bytes of the tensor, a block of rows at a time."""
        if self.tensor.dtype == self.type.name:
            yield from self.tensor.stored_chunks()
        else:
            for rows in self.tensor.chunks():
                yield gguf.quants.quantize(rows, self.type)


def write_gguf(merged: Path, out: Path, file_type: str = "f16", *, name: str) -> Path:
    """Convert the folder `merged` to the GGUF file `out`; `name` becomes general.name.

    Raises ObserverError for a folder that is not a whole Qwen3 model with a Qwen tokenizer.
    """
    if file_type not in FILE_TYPES:
        raise ObserverError(f"unknown GGUF type {file_type!r}; converted are {', '.join(FILE_TYPES)}")
    tensor_type, llama_file_type = FILE_TYPES[file_type]
    shape = read_shape(merged)
    entries = _plan(list_tensors(merged, shape), shape, tensor_type)
    with atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
        try:
            for entry in entries:
                writer.add_tensor_info(entry.name, entry.byte_shape, np.dtype(np.uint8), entry.size_bytes, entry.type)
            _add_metadata(writer, shape, name, llama_file_type)
            add_vocabulary(writer, merged, shape.vocab_size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        with temporary.open("ab") as file:
            _append(file, entries, out.name)
    return out


def gguf_bytes(merged: Path, file_type: str) -> int:
    """The size that `write_gguf` will write, but for the head with the vocabulary, bounded by the tokenizer's file."""
    shape = read_shape(merged)
    entries = _plan(list_tensors(merged, shape), shape, FILE_TYPES[file_type][0])
    head_bytes = (merged / "tokenizer.json").stat().st_size + 40 * shape.vocab_size
    return head_bytes + sum(_padded(entry.size_bytes) for entry in entries)


def _plan(tensors: list[Tensor], shape: Qwen3Shape, wanted: GGMLQuantizationType) -> list[_Entry]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, shape.block_count)
    entries = []
    for tensor in tensors:
        name = names.get_name(tensor.name, try_suffixes=(".weight",))
        assert name is not None, f"gguf knows no name for {tensor.name}"
        entries.append(_Entry(tensor, name, _type_of(name, tensor.shape, wanted)))
    return entries


def _type_of(name: str, shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return GGMLQuantizationType.F32
    block_size, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block_size == 0 else GGMLQuantizationType.F16


def _add_metadata(writer: gguf.GGUFWriter, shape: Qwen3Shape, name: str, file_type: LlamaFileType) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.add_block_count(shape.block_count)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.embedding_length)
    writer.add_feed_forward_length(shape.feed_forward_length)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.head_count_kv)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_key_length(shape.key_length)
    writer.add_value_length(shape.key_length)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _append(file: BinaryIO, entries: list[_Entry], label: str) -> None:
    """Write the tensors behind the head, each at the next multiple of the alignment, as the head says."""
    with _progress(sum(entry.size_bytes for entry in entries), label) as advance:
        _pad(file)
        for entry in entries:
            for block in entry.encode():
                file.write(block.data)
                advance(block.nbytes)
            _pad(file)


def _pad(file: BinaryIO) -> None:
    position = file.tell()
    file.write(bytes(_padded(position) - position))


def _padded(size_bytes: int) -> int:
    return gguf.GGUFWriter.ggml_pad(size_bytes, gguf.GGUF_DEFAULT_ALIGNMENT)


@contextmanager
def _progress(total_bytes: int, label: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, otherwise a line now and then; both on stderr, with bytes and the time left."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total_bytes, desc=label, unit="B", unit_scale=True, leave=False) as bar:
            yield lambda size_bytes: (bar.update(size_bytes), None)[1]
        return
    done_bytes, start = 0, time.monotonic()
    shown_at = start

    def advance(size_bytes: int) -> None:
        nonlocal done_bytes, shown_at
        done_bytes += size_bytes
        now = time.monotonic()
        if now - shown_at > SECONDS_BETWEEN_LINES:
            shown_at, left_s = now, (now - start) * (total_bytes - done_bytes) / done_bytes
            done = f"{done_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB"
            print(f"{label}: {done}, about {left_s:,.0f} s left", file=sys.stderr, flush=True)

    yield advance
