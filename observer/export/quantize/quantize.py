"""Smaller GGUF types through llama.cpp's own quantizer.

The quantizer runs in a child process: Ctrl-C ends it at once, an abort inside llama.cpp becomes one clear line,
and its log is shown only when it fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from observer.console.progress import show_progress
from observer.engine.llama_model import usable_cores
from observer.errors import ObserverError, raise_all
from observer.export.quantize.imatrix_file import Imatrix, read_imatrix
from observer.files import atomic_path
from observer.paths import python_path
from observer.weights.gguf_header import GGUFHeader, read_header
from observer.weights.gguf_types import (
    UNQUANTIZED,
    file_types,
    quantization_faults,
    tensor_type_faults,
    tensor_types,
    wants_imatrix,
)

_FALLBACK = re.compile(r"warning: (\S+)\s+- ncols +\d+ not divisible")
_PLACE = re.compile(r"\[ *(\d+)/ *\d+\] ")
_BLOCK_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
_WHY = re.compile(r"error|fail|abort|assert|disabled", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What the child is told."""

    source: str
    out: str
    file_type: int
    imatrix: str | None
    overrides: dict[str, str]


def quantize(
    source: Path,
    out: Path,
    quantization: str,
    *,
    imatrix: Path | None = None,
    overrides: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write `source` (an f32, f16 or bf16 GGUF) to `out` in another type.

    Returns `tensor: type` of those whose rows do not divide by the block of the type asked for. `imatrix` is one in
    GGUF format, for types below 5 bits and overrides; `overrides` maps regular expressions of tensor names to types,
    such as `q6_k`.
    Raises ObserverError for what cannot be made, and with llama.cpp's own words when it fails.
    """
    overrides = dict(overrides or {})
    imatrix = imatrix if takes_imatrix(quantization, overrides) else None
    has_imatrix = imatrix is not None
    faults = quantization_faults([quantization], has_imatrix=has_imatrix)
    faults += tensor_type_faults(overrides, has_imatrix=has_imatrix)
    if not source.is_file():
        raise_all(faults)
    header = read_header(source)
    raise_all(faults + _source_faults(source, header, imatrix, overrides))
    n_tensors = len(header.tensor_types)
    with atomic_path(out) as temporary, show_progress(f"quantizing to {quantization}, tensors", n_tensors) as show:
        job = Job(str(source), str(temporary), file_types()[quantization], imatrix and str(imatrix), overrides)
        try:
            log = run_job(job, lambda done: show(done, n_tensors))
        except ObserverError as error:
            if shutil.disk_usage(temporary.parent).free < _BLOCK_BYTES:  # llama.cpp says "iostream error"
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        types = read_header(temporary).tensor_types
        return tuple(f"{name}: {types[name]}" for name in _FALLBACK.findall(log))


def takes_imatrix(quantization: str, overrides: Mapping[str, str]) -> bool:
    """The one rule of which files an importance matrix goes into, where there is one."""
    return quantization not in UNQUANTIZED and (wants_imatrix(quantization) or bool(overrides))


def run_job(job: Job, on_tensor: Callable[[int], None] = lambda _: None) -> str:
    """Run llama.cpp's quantizer in a child process and return its log; `on_tensor` is told how many are done."""
    command = [sys.executable, "-m", "observer.export.quantize.quantize", json.dumps(asdict(job))]
    environment = os.environ | {"PYTHONPATH": python_path()}
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as child:
        try:
            for line in child.stdout or ():
                lines.append(line)
                if place := _PLACE.match(line):
                    on_tensor(int(place[1]))
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise ObserverError(f"{job.source}: {_explain(child.returncode, lines)}")
    return "".join(lines)


def _source_faults(source: Path, header: GGUFHeader, imatrix: Path | None, overrides: Mapping[str, str]) -> list[str]:
    """What keeps a type from being made of `source`."""
    known = file_types()
    found = header.metadata.get("general.file_type")
    faults = []
    if found not in [known[name] for name in UNQUANTIZED]:
        name = next((name for name, value in known.items() if value == found), found)
        faults.append(f"{source}: found type {name}; quantize from {', '.join(UNQUANTIZED)}")
    columns = {name: shape[-1] for name, shape in header.tensor_shapes.items() if len(shape) > 1}
    for pattern in overrides:
        with contextlib.suppress(re.error):  # told by tensor_type_faults
            if not any(re.search(pattern, name) for name in columns):
                faults.append(f"export.tensor_types: {pattern!r} is in no tensor of {source}, such as {max(columns)}")
    if imatrix is not None:
        sums = read_imatrix(imatrix).sums
        layers = {name: size for name, size in columns.items() if name.startswith("blk.")}
        wrong = [name for name, size in layers.items() if name not in sums or sums[name].size != size]
        if wrong:
            faults.append(
                f"{imatrix}: lacks {len(wrong)} layers of {source}, such as {wrong[0]}; compute it of this model"
            )
    return faults


def _quantize_here(job: Job) -> int:
    """The child's whole work; llama.cpp logs to stderr."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = job.file_type, usable_cores()
    if job.imatrix:
        imatrix = read_imatrix(Path(job.imatrix))
        params.imatrix, params.kv_overrides = _imatrix_array(imatrix), _imatrix_origin(imatrix)
    if job.overrides:
        params.tt_overrides = _overrides_array(job.overrides)
    return llama_cpp.llama_model_quantize(os.fsencode(job.source), os.fsencode(job.out), ctypes.pointer(params))


def _imatrix_array(imatrix: Imatrix) -> Any:
    """Ended by an entry without name, as the others. Each holds on to what it points to."""
    array = (llama_cpp.llama_model_imatrix_data * (len(imatrix.sums) + 1))()
    for entry, name in zip(array, sorted(imatrix.sums), strict=False):
        values = imatrix.mean_squares(name)
        entry.name, entry.size = name.encode(), values.size
        entry.data = (ctypes.c_float * values.size)(*values)
    return array


def _imatrix_origin(imatrix: Imatrix) -> Any:
    """The keys by which llama.cpp's own quantizer tells that a file was made with an imatrix."""
    values = {"quantize.imatrix.entries_count": len(imatrix.sums), "quantize.imatrix.chunks_count": imatrix.n_rows}
    array = (llama_cpp.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(array, values.items(), strict=False):
        entry.tag, entry.key, entry.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, key.encode(), value
    return array


def _overrides_array(overrides: Mapping[str, str]) -> Any:
    array = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
    for entry, (pattern, name) in zip(array, overrides.items(), strict=False):
        entry.pattern, entry.type = pattern.encode(), tensor_types()[name]
    return array


def _explain(code: int, log: list[str]) -> str:
    why = [line for line in log if _WHY.search(line)] or log[-3:]
    words = "\n  ".join(line.strip() for line in why)
    return f"llama.cpp could not quantize it (exit {code}):\n  {words}"


def end_with_parent() -> None:
    """Have the system kill this child when its parent is killed: nobody would take what it writes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    sys.exit(_quantize_here(Job(**json.loads(sys.argv[1]))))
