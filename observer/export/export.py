"""The one builder of GGUF files: of the training command, of `observer export` and of the benchmark of quantizations.

First the files in 16 and 32 bits, then the importance matrix, then what llama.cpp quantizes from one of them. A file is
opened again and compared with transformers, and only then has its final name. A manifest records what it was made of,
so that an export that was cut is resumed. What the files share (merged model, 16-bit GGUF, reference) is made at most
once, and only when a file needs it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from observer.errors import ObserverError, raise_all
from observer.export.gguf.against_transformers import Check, Outcome, Reference, check_changed, compare
from observer.export.gguf.verify import verify_gguf
from observer.export.gguf.write import FILE_TYPES, gguf_bytes, write_gguf
from observer.export.quantize.imatrix import Calibration, measure_imatrix
from observer.export.quantize.imatrix_file import read_imatrix
from observer.export.quantize.quantize import quantize, takes_imatrix
from observer.export.source import Source
from observer.files import check_writable, remove_leftovers, sha256_file
from observer.runs.manifest import Manifest
from observer.weights.checkpoint import list_tensors, read_shape
from observer.weights.gguf_types import UNQUANTIZED, quantization_faults, tensor_type_faults
from observer.weights.merge import merge_adapter, read_lora_header
from observer.weights.tokenizer import check_tokenizer

UNVERIFIED = ".unverified"
"""Behind the name of a file that has not passed its checks."""


@dataclass(frozen=True)
class File:
    """One to make; `name` tells it from the others: its type, or what parts it from another file of that type."""

    name: str
    file_type: str
    has_imatrix: bool = False


@dataclass(frozen=True)
class ExportPlan:
    """What will be written to `out`; `overrides` map tensor patterns to types.

    `imatrix` is a GGUF one: measured as `calibration` says, or given where that is None. `full` is a verified f16 of
    the same model that is there already.
    """

    source: Source
    out: Path
    files: tuple[File, ...]
    imatrix: Path | None = None
    calibration: Calibration | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    full: Path | None = None
    keeps_merged: bool = False

    def path(self, file: File) -> Path:
        return self.out / f"{self.source.name}-{file.name}.gguf"

    @property
    def merged(self) -> Path:
        """Where the merged model of an adapter is kept when that is asked for."""
        return self.out / f"{self.source.name}-merged"


def files_of(types: tuple[str, ...], overrides: Mapping[str, str], *, has_imatrix: bool) -> tuple[File, ...]:
    """A file of each type, with the importance matrix where one is there and the type takes it."""
    return tuple(File(name, name, has_imatrix and takes_imatrix(name, overrides)) for name in types)


def export(plan: ExportPlan, manifest: Manifest) -> None:
    """Make and record every file that is not there yet, and say what is not as it should be.

    Raises ObserverError for what can be told before (types, source), and at the end naming every failed check.
    """
    check_plan(plan)
    check_writable(plan.out)
    remove_leftovers(plan.out)
    source_inputs = {role: sha256_file(folder) for role, folder in plan.source.inputs.items()}
    faults: list[str] = []

    def make(files: Iterable[File]) -> None:
        for file in files:
            inputs = {"type": file.file_type, "name": plan.source.name, **source_inputs}
            if _is_quantized(file):
                inputs |= {"imatrix": plan.imatrix if file.has_imatrix else None, "overrides": dict(plan.overrides)}
            try:
                manifest.run(f"gguf {file.name}", inputs, [plan.path(file)], lambda file=file: workshop.make(file))
            except ObserverError as error:
                faults.append(str(error))
                continue
            workshop.made[file.file_type] = plan.path(file)
            _warn(plan.path(file), notes_of(manifest, file))

    with tempfile.TemporaryDirectory(f".{os.getpid()}.tmp", ".export-", plan.out) as folder:
        workshop = _Workshop(plan, Path(folder))
        make(file for file in plan.files if not _is_quantized(file))  # the others are made of one of these
        if plan.imatrix and plan.calibration and any(file.has_imatrix for file in plan.files):
            inputs = source_inputs | plan.calibration.inputs
            try:
                manifest.run("imatrix", inputs, [plan.imatrix], workshop.measure_imatrix)
            except ObserverError as error:
                raise_all([*faults, str(error)])
        make(file for file in plan.files if _is_quantized(file))
        raise_all(faults)
        if plan.keeps_merged and plan.source.model is None:
            manifest.run("merged", source_inputs, [plan.merged], lambda: {"folder": workshop.merged.name})


def notes_of(manifest: Manifest, file: File) -> dict[str, Any]:
    """What is on record of a file: size_bytes, tensor_types, fallbacks, has_imatrix, checks."""
    return manifest.notes(f"gguf {file.name}")


def check_plan(plan: ExportPlan) -> None:
    """Raise ObserverError for types and overrides that cannot be made, a source that is not whole, a bad imatrix."""
    has_imatrix = plan.imatrix is not None
    faults = quantization_faults([file.file_type for file in plan.files], has_imatrix=has_imatrix)
    raise_all(faults + tensor_type_faults(plan.overrides, has_imatrix=has_imatrix))
    list_tensors(plan.source.shape_folder, read_shape(plan.source.shape_folder))
    check_tokenizer(plan.source.tokenizer_folder)
    if plan.source.adapter and not plan.source.model:
        read_lora_header(plan.source.adapter)
    if plan.imatrix and not plan.calibration:
        read_imatrix(plan.imatrix)


def planned_bytes(plan: ExportPlan) -> dict[str, int]:
    """What is to be written -> its size at most; what llama.cpp quantizes is bounded by q8_0 and the overrides."""
    folder, tokenizer = plan.source.shape_folder, plan.source.tokenizer_folder
    bounds = {name: gguf_bytes(folder, name, tokenizer) for name in FILE_TYPES}
    quantized = max(bounds[name] for name in {"q8_0", *plan.overrides.values()} & bounds.keys())
    files = [file for file in plan.files if not plan.path(file).exists()]
    sizes = {file.name: quantized if _is_quantized(file) else bounds[file.file_type] for file in files}
    if any(map(_is_quantized, files)) and not plan.full and all(map(_is_quantized, plan.files)):
        sizes["16-bit intermediate, deleted at the end"] = bounds["f16"]
    if plan.source.model is None and (sizes or (plan.keeps_merged and not plan.merged.exists())):
        tensors = list_tensors(folder, read_shape(folder))
        sizes["merged model" + ("" if plan.keeps_merged else ", deleted at the end")] = sum(
            tensor.size_bytes for tensor in tensors
        )
    return sizes


def check_disk(plan: ExportPlan, remedy: str) -> None:
    """Say what is to be written. Raises ObserverError unless all of it fits."""
    sizes = planned_bytes(plan)
    for what, size_bytes in sizes.items():
        print(f"to write: {what}, at most {size_bytes / 1e6:,.1f} MB", file=sys.stderr, flush=True)
    check_writable(plan.out, sum(sizes.values()), remedy)


class _Workshop:
    """Makes single files and holds what they share; what goes with the export is in `folder`."""

    def __init__(self, plan: ExportPlan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.made: dict[str, Path] = {"f16": plan.full} if plan.full else {}
        """Verified files by their type."""

    def make(self, file: File) -> dict[str, Any]:
        """Write one file, verify it, and give it its name; return what is recorded of it."""
        final, kind = self.plan.path(file), file.file_type
        path = final.with_name(final.name + UNVERIFIED)
        fallbacks: tuple[str, ...] = ()
        if _is_quantized(file):
            imatrix = self.plan.imatrix if file.has_imatrix else None
            fallbacks = quantize(self.intermediate, path, kind, imatrix=imatrix, overrides=self.plan.overrides)
        else:
            write_gguf(self.merged, path, kind, name=self.plan.source.name)
        header = verify_gguf(path, expected_file_type=kind)
        checks = [self._changed, *compare(path, self.reference, kind)]
        raise_all([f"{path}: {check.name}: {check.found}" for check in checks if check.outcome is Outcome.FAILED])
        os.replace(path, final)
        return {
            "size_bytes": final.stat().st_size,
            "tensor_types": dict(Counter(header.tensor_types.values())),
            "fallbacks": list(fallbacks),
            "has_imatrix": file.has_imatrix,
            "checks": [asdict(check) for check in checks],
        }

    def measure_imatrix(self) -> dict[str, Any]:
        assert self.plan.imatrix and self.plan.calibration
        return {"rows": measure_imatrix(self.plan.calibration, self.merged, self.plan.imatrix)}

    @cached_property
    def merged(self) -> Path:
        """The model to convert."""
        source = self.plan.source
        if source.model:
            return source.model
        assert source.adapter and source.base
        merged = self.plan.merged if self.plan.keeps_merged else self.folder / "merged"
        merge_adapter(source.adapter, source.base, merged)
        return merged

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.merged)

    @cached_property
    def intermediate(self) -> Path:
        """A GGUF that is not quantized: one that was asked for, or else one in 16 bits, deleted at the end."""
        wanted = _stored_in_16_bits(self.merged)
        for name in (wanted, *UNQUANTIZED):
            if name in self.made:
                return self.made[name]
        return write_gguf(self.merged, self.folder / f"{wanted}.gguf", wanted, name=self.plan.source.name)

    @cached_property
    def _changed(self) -> Check:
        return check_changed(self.merged, self.plan.source.base)


def _is_quantized(file: File) -> bool:
    """Whether llama.cpp makes it."""
    return file.file_type not in UNQUANTIZED


def _stored_in_16_bits(folder: Path) -> str:
    """bf16 for weights that are stored so, which loses nothing; f16 for all others."""
    dtypes = {tensor.dtype for tensor in list_tensors(folder, read_shape(folder))}
    return "bf16" if dtypes == {"BF16"} else "f16"


def _warn(path: Path, notes: Mapping[str, Any]) -> None:
    """A line for everything that is not as it should be without being a fault."""
    lines = [f"{check['name']}: {check['found']}" for check in notes["checks"] if check["outcome"] == Outcome.WARNED]
    if notes["fallbacks"]:
        names = ", ".join(notes["fallbacks"][:3])
        lines.append(f"llama.cpp chose another type for {len(notes['fallbacks'])} tensors, such as {names}")
    for line in lines:
        print(f"warning: {path.name}: {line}", file=sys.stderr, flush=True)
