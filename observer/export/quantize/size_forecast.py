"""What a quantization will weigh, before any is made.

Sizes are llama.cpp's own: its quantizer is run dry, and says which type each tensor would get.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gguf

from observer.export.gguf.header import GGUFHeader, read_header
from observer.export.gguf.without_weights import write_hollow_gguf
from observer.export.gguf.write import gguf_bytes
from observer.export.quantize.quantize import Job, check_request, run_job, used_imatrix
from observer.weights.gguf_types import file_types

_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*, type = +(\w+), size = [^(\n]*(?:\((\w+)\))?")


def quantized_bytes(
    source: Path, types: Sequence[str], *, imatrix: Path | None = None, overrides: Mapping[str, str] | None = None
) -> dict[str, int]:
    """The size of the file of each type, exact but for at most 100 bytes of keys; from a folder at most that.

    `source` is a GGUF in 16 or 32 bits, or a Hugging Face folder not converted yet. Raises ObserverError naming
    everything that cannot be made.
    """
    overrides = dict(overrides or {})
    with _head_of(source) as (head, metadata_bytes):
        check_request(source, types, imatrix, overrides, head=head)
        header = read_header(head)
        sizes: dict[str, int] = {}
        for name in types:
            used = used_imatrix(name, imatrix, overrides)
            job = Job(str(head), os.devnull, file_types()[name], used and str(used), overrides, is_dry_run=True)
            sizes[name] = metadata_bytes + _tensor_bytes(header, _planned_types(run_job(job)))
    return sizes


@contextlib.contextmanager
def _head_of(source: Path) -> Iterator[tuple[Path, int]]:
    """A GGUF with the tensors of `source`, and the bytes its other contents will take; of a folder, at most."""
    if not source.is_dir():
        header = read_header(source)
        yield source, source.stat().st_size - _tensor_bytes(header, header.tensor_types)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_hollow_gguf(source, Path(folder) / "hollow.gguf")
        header = read_header(path)
        yield path, gguf_bytes(source, "f16") - _tensor_bytes(header, header.tensor_types)


def _planned_types(log: str) -> dict[str, str]:
    return {name: (after or before).upper() for name, before, after in _TENSOR.findall(log)}


def _tensor_bytes(header: GGUFHeader, types: Mapping[str, str]) -> int:
    """With each tensor padded as in the file."""
    total, alignment = 0, gguf.GGUF_DEFAULT_ALIGNMENT
    assert types.keys() == header.tensor_shapes.keys(), "llama.cpp's log names every tensor once"
    for name, shape in header.tensor_shapes.items():
        size = 1
        for length in gguf.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[types[name]]):
            size *= length
        total += -(-size // alignment) * alignment
    return total
