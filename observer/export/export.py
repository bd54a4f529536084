"""`observer export`: from a source to verified GGUF files of several types, with a report beside them.

A file has its final name only once it is verified, and `export.json` records what it was made of: a run that was cut
goes on where it stopped. What the files share (merged model, 16-bit GGUF, reference) is made at most once, and only
when a file needs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from observer.errors import ObserverError, raise_all
from observer.export.gguf.against_transformers import Check, Outcome, Reference, check_changed, compare
from observer.export.gguf.verify import verify_gguf
from observer.export.gguf.write import FILE_TYPES, gguf_bytes, write_gguf
from observer.export.quantize.imatrix import imatrix_of_file
from observer.export.quantize.quantize import quantize, used_imatrix
from observer.export.source import Source
from observer.files import check_writable, sha256_file
from observer.runs.lock import held_folder
from observer.runs.manifest import Manifest
from observer.runs.stages import Stages
from observer.weights.checkpoint import list_tensors, read_shape
from observer.weights.gguf_types import UNQUANTIZED, check_quantizations, check_tensor_types, wants_imatrix
from observer.weights.merge import merge_adapter

EXPORT_JSON = "export.json"
_UNVERIFIED = ".unverified"
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp|\.export-(\d+)-.+")


@dataclass(frozen=True)
class ExportPlan:
    """What will be written to `out`; `overrides` map tensor patterns to types.

    `imatrix` is a GGUF one; without it one is computed from the rows of the file `imatrix_rows` where a type wants it.
    """

    source: Source
    out: Path
    types: tuple[str, ...]
    imatrix: Path | None = None
    imatrix_rows: Path | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    keeps_merged: bool = False

    def path(self, file_type: str) -> Path:
        return self.out / f"{self.source.name}-{file_type}.gguf"

    @property
    def has_imatrix(self) -> bool:
        """Whether there is one for the types that want it, or what to compute it from."""
        return bool(self.imatrix or self.imatrix_rows)

    @property
    def computed_imatrix(self) -> Path | None:
        """Where one of our own is written; None when none is wanted or one was given."""
        is_wanted = bool(self.overrides) or any(map(wants_imatrix, self.types))
        is_ours = is_wanted and self.imatrix_rows and not self.imatrix
        return self.out / f"{self.source.name}-imatrix.gguf" if is_ours else None

    @property
    def merged(self) -> Path:
        """Where the merged model of an adapter is kept when that is asked for."""
        return self.out / f"{self.source.name}-merged"


def export(plan: ExportPlan) -> Manifest:
    """Write, verify and record every type that is not there yet; return the record of all, `out`/export.json.

    Raises ObserverError for what can be told before (types, source, disk), and at the end naming every failed check.
    """
    check_plan(plan)
    with held_folder(plan.out, "name another one with --out"):
        return _export_alone(plan)


def _export_alone(plan: ExportPlan) -> Manifest:
    remove_leftovers(plan.out)
    check_disk(plan)
    manifest = Manifest(plan.out / EXPORT_JSON)
    stages, faults = Stages(manifest), []
    source_inputs = {role: sha256_file(folder) for role, folder in plan.source.inputs.items()}
    with _Workshop(plan) as workshop:
        if path := plan.computed_imatrix:
            inputs = {**source_inputs, "rows": plan.imatrix_rows}
            stages.run("imatrix", inputs, [path], workshop.make_imatrix)
            plan = workshop.plan = replace(plan, imatrix=path)
        for file_type in sorted(plan.types, key=lambda name: name not in FILE_TYPES):  # may become the intermediate
            inputs = {
                "type": file_type,
                "name": plan.source.name,
                **source_inputs,
                **_quantizer_inputs(plan, file_type),
            }
            try:
                stages.run(file_type, inputs, [plan.path(file_type)], lambda name=file_type: workshop.make(name))
                workshop.made.add(file_type)
            except ObserverError as error:
                faults.append(str(error))
    raise_all(faults)
    return manifest


def check_plan(plan: ExportPlan) -> None:
    """Raise ObserverError for types and overrides that cannot be made, and a source that is not a whole Qwen3."""
    check_quantizations(plan.types, has_imatrix=plan.has_imatrix)
    check_tensor_types(plan.overrides, has_imatrix=plan.has_imatrix)
    list_tensors(plan.source.shape_folder, read_shape(plan.source.shape_folder))


def planned_bytes(plan: ExportPlan) -> dict[str, int]:
    """What is to be written -> its size at most; what a type of llama.cpp's takes is bounded by q8_0."""
    folder = plan.source.shape_folder
    sizes = {name: gguf_bytes(folder, name if name in FILE_TYPES else "q8_0") for name in plan.types}
    sizes = {name: size for name, size in sizes.items() if not plan.path(name).exists()}
    needs_intermediate = any(_needs_quantizer(plan, name) for name in sizes)
    if needs_intermediate and not set(UNQUANTIZED) & set(plan.types):
        sizes["16-bit intermediate, deleted at the end"] = gguf_bytes(folder, "f16")
    if sizes and plan.source.model is None:
        tensors = list_tensors(folder, read_shape(folder))
        sizes["merged model" + ("" if plan.keeps_merged else ", deleted at the end")] = sum(
            tensor.size_bytes for tensor in tensors
        )
    return sizes


def check_disk(plan: ExportPlan) -> None:
    """Raise ObserverError unless all of it fits."""
    needed_bytes = sum(planned_bytes(plan).values())
    check_writable(plan.out, needed_bytes, "ask for fewer types, or name another folder with --out")


def remove_leftovers(out: Path) -> None:
    """Delete what exports that were killed have left in `out`."""
    import psutil

    for path in out.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match[1] or match[2])):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Workshop:
    """Makes single files; holds what they share until the export is over."""

    def __init__(self, plan: ExportPlan) -> None:
        self.plan = plan
        self.made: set[str] = set()
        """Types whose files are there and verified."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def make(self, file_type: str) -> dict[str, Any]:
        """Write one file, verify it, and give it its name; return what the report says of it."""
        final = self.plan.path(file_type)
        path = final.with_name(final.name + _UNVERIFIED)
        notes = self._write(file_type, path)
        header = verify_gguf(path, expected_file_type=file_type)
        checks = [self._changed, *compare(path, self.reference, file_type)]
        raise_all([f"{path}: {c.name}: {c.found}" for c in checks if c.outcome is Outcome.FAILED])
        os.replace(path, final)
        types = dict(Counter(header.tensor_types.values()))
        notes |= {"size_bytes": final.stat().st_size, "tensor_types": types}
        return notes | {"checks": [asdict(check) for check in checks]}

    def make_imatrix(self) -> dict[str, Any]:
        """Measure the merged model on the plan's rows."""
        assert self.plan.computed_imatrix and self.plan.imatrix_rows
        n_rows = imatrix_of_file(self.plan.computed_imatrix, self.merged, self.plan.imatrix_rows)
        return {"rows": n_rows, "of": str(self.plan.imatrix_rows)}

    def _write(self, file_type: str, path: Path) -> dict[str, Any]:
        plan = self.plan
        if not _needs_quantizer(plan, file_type):
            write_gguf(self.merged, path, file_type, name=plan.source.name)
            return {"fallbacks": [], "has_imatrix": False}
        imatrix = used_imatrix(file_type, plan.imatrix, plan.overrides)
        report = quantize(self.intermediate, path, file_type, imatrix=imatrix, overrides=plan.overrides)
        return {"fallbacks": list(report.fallbacks), "has_imatrix": report.has_imatrix}

    @cached_property
    def merged(self) -> Path:
        """The model to convert."""
        source = self.plan.source
        if source.model:
            return source.model
        assert source.adapter and source.base
        merged = self.plan.merged if self.plan.keeps_merged else self._work / "merged"
        merge_adapter(source.adapter, source.base, merged)
        return merged

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.merged)

    @cached_property
    def intermediate(self) -> Path:
        """A GGUF in 16 bits: one that was asked for, or else one that is deleted at the end."""
        wanted = _stored_in_16_bits(self.merged)
        for name in (wanted, *UNQUANTIZED):
            if name in self.made:
                return self.plan.path(name)
        return write_gguf(self.merged, self._work / f"{wanted}.gguf", wanted, name=self.plan.source.name)

    @cached_property
    def _changed(self) -> Check:
        return check_changed(self.merged, self.plan.source.base)

    @cached_property
    def _work(self) -> Path:
        prefix = f".export-{os.getpid()}-"
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=self.plan.out)))


def _needs_quantizer(plan: ExportPlan, file_type: str) -> bool:
    """Whether llama.cpp makes the type: we write four ourselves, and no overrides."""
    return file_type not in (UNQUANTIZED if plan.overrides else FILE_TYPES)


def _quantizer_inputs(plan: ExportPlan, file_type: str) -> dict[str, Any]:
    if not _needs_quantizer(plan, file_type):
        return {}
    imatrix = used_imatrix(file_type, plan.imatrix, plan.overrides)
    return {"imatrix": imatrix and sha256_file(imatrix), "overrides": dict(plan.overrides)}


def _stored_in_16_bits(folder: Path) -> str:
    """bf16 for weights that are stored so, which loses nothing; f16 for all others."""
    dtypes = {tensor.dtype for tensor in list_tensors(folder, read_shape(folder))}
    return "bf16" if dtypes == {"BF16"} else "f16"
