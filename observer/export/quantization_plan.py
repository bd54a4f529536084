"""Several quantizations in one go: what each will weigh and whether the disk holds them, before any is made.

Sizes are llama.cpp's own: its quantizer is run dry, and says which type each tensor would get.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf

from observer.errors import ObserverError
from observer.export.gguf import gguf_bytes
from observer.export.header import GGUFHeader, read_header
from observer.export.hollow import write_hollow_gguf
from observer.export.quantization_types import file_types
from observer.export.quantize import FALLBACK, Job, QuantizationReport, check_request, quantize, run_job, used_imatrix
from observer.files import check_writable

_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*, type = +(\w+), size = [^(\n]*(?:\((\w+)\))?")


@dataclass(frozen=True)
class PlannedFile:
    """One file to be made. `size_bytes` is exact but for at most 100 bytes of keys, or from a folder at most that."""

    quantization: str
    path: Path
    size_bytes: int
    n_fallbacks: int
    imatrix: Path | None


@dataclass(frozen=True)
class QuantizationPlan:
    """The files, and the bytes free where they go."""

    files: tuple[PlannedFile, ...]
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def text(self) -> str:
        lines = [f"{file.path}  {file.size_bytes / 1e6:,.1f} MB{_remarks(file)}" for file in self.files]
        return "\n".join([*lines, f"{self.needed_bytes / 1e6:,.1f} MB in all, {self.free_bytes / 1e6:,.0f} MB free"])


def quantize_all(
    source: Path, outs: Mapping[str, Path], *, imatrix: Path | None = None, overrides: Mapping[str, str] | None = None
) -> list[QuantizationReport]:
    """Quantize `source` to each type of `outs` (type -> file), with the plan printed first.

    The imatrix goes to the types below 5 bits. Raises ObserverError before anything is written when a type cannot
    be made or the disk is too small.
    """
    plan = plan_quantizations(source, outs, imatrix=imatrix, overrides=overrides)
    print(plan.text, flush=True)
    for folder in {file.path.parent for file in plan.files}:
        check_writable(folder, plan.needed_bytes)
    reports = []
    for file in plan.files:
        report = quantize(source, file.path, file.quantization, imatrix=file.imatrix, overrides=overrides)
        print(f"{file.path}: {describe(report)}", flush=True)
        reports.append(report)
    return reports


def plan_quantizations(
    source: Path, outs: Mapping[str, Path], *, imatrix: Path | None = None, overrides: Mapping[str, str] | None = None
) -> QuantizationPlan:
    """Ask llama.cpp what it would make of a GGUF in 16 or 32 bits, or of a Hugging Face folder not converted yet.

    Raises ObserverError naming everything that cannot be made.
    """
    if not outs:
        raise ObserverError("export.quantizations: empty; name at least one, such as q4_k_m")
    overrides, files = dict(overrides or {}), []
    with _head_of(source) as (head, metadata_bytes):
        check_request(source, list(outs), imatrix, overrides, head=head)
        header = read_header(head)
        for quantization, path in outs.items():
            used = used_imatrix(quantization, imatrix, overrides)
            job = Job(str(head), os.devnull, file_types()[quantization], used and str(used), overrides, is_dry_run=True)
            log = run_job(job)
            size_bytes = metadata_bytes + _tensor_bytes(header, _planned_types(log))
            files.append(PlannedFile(quantization, path, size_bytes, len(FALLBACK.findall(log)), used))
    return QuantizationPlan(tuple(files), _free_bytes(next(iter(outs.values()))))


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


def describe(report: QuantizationReport) -> str:
    """What is in a file, in one line."""
    types = ", ".join(f"{count} {name}" for name, count in report.tensor_types.items())
    fallbacks = f"; fell back: {', '.join(report.fallbacks)}" if report.fallbacks else ""
    return f"{report.size_bytes / 1e6:,.1f} MB, tensors: {types}{fallbacks}"


def _remarks(file: PlannedFile) -> str:
    remarks = [f"{file.n_fallbacks} tensors fall back to another type"] if file.n_fallbacks else []
    remarks += ["importance matrix"] if file.imatrix else []
    return f"  ({', '.join(remarks)})" if remarks else ""


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


def _free_bytes(path: Path) -> int:
    """Of the disk that holds the nearest folder that is there."""
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free
