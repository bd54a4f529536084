"""The files that are benchmarked: what a run's types and importance matrix make, built where it is missing.

Files that were made here are on record with the hashes of what they were made of, so that a new training makes new
ones. The quality of the files is `rounds`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

from observer.errors import ObserverError, raise_all
from observer.export.export import ExportPlan, File, check_disk, export, notes_of
from observer.export.quantize.imatrix import calibration_of
from observer.export.quantize.quantize import takes_imatrix
from observer.export.source import find_source
from observer.runs.finished_run import Run
from observer.runs.manifest import Manifest
from observer.weights.gguf_header import read_header
from observer.weights.gguf_types import NEED_IMATRIX, quantization_faults

ImatrixMode = Literal["both", "auto", "without"]
REFERENCE = "f16"


@dataclass(frozen=True)
class Candidate:
    """A file to be measured; `name` tells it from the others in every table."""

    name: str
    path: Path
    type_name: str
    has_imatrix: bool
    n_fallbacks: int = 0
    """Tensors that got another type than asked for, since their rows do not divide by its block."""


def wanted_files(types: Sequence[str], mode: ImatrixMode, overrides: Mapping[str, str] | None = None) -> list[File]:
    """What to make of each type, the reference first.

    `both`: each that takes an importance matrix with and without one, as far as llama.cpp allows; `auto`: as an export
    makes it; `without`: no matrix at all. Raises ObserverError naming every type that cannot be made.
    """
    raise_all(quantization_faults(types, has_imatrix=mode != "without"))
    wanted = [File(REFERENCE, REFERENCE)]
    for name in types:
        takes_matrix = mode != "without" and takes_imatrix(name, overrides or {})
        if not takes_matrix or (mode == "both" and name not in NEED_IMATRIX):
            wanted.append(File(name, name))
        if takes_matrix:
            wanted.append(File(f"{name}-imatrix", name, has_imatrix=True))
    return list(dict.fromkeys(wanted))


def build(run: Run, wanted: Sequence[File], folder: Path) -> list[Candidate]:
    """Make what is missing below `folder`, and return all of it in the order wanted.

    The f16 and the importance matrix that the run has are used. Raises ObserverError, before anything is written, for
    types that cannot be made, a model that is not here, and a disk too small.
    """
    own, matrix = run.paths.gguf(REFERENCE), run.paths.imatrix
    is_wanted = any(file.has_imatrix for file in wanted)
    if is_measured := is_wanted and not matrix.exists():
        matrix = folder / "imatrix.gguf"
    plan = ExportPlan(
        source=replace(find_source(run.paths.root), name=run.config.run.name),
        out=folder / "gguf",
        files=tuple(file for file in wanted if file.name != REFERENCE or not own.exists()),
        imatrix=matrix if is_wanted else None,
        calibration=calibration_of(run) if is_measured else None,
        overrides=run.config.export.tensor_types,
        full=own if own.exists() else None,
    )
    check_disk(plan, "or name another folder with --work")
    export(plan, manifest := Manifest(folder / "manifest.json"))
    return [
        Candidate(
            file.name,
            plan.path(file) if file in plan.files else own,
            file.file_type,
            file.has_imatrix,
            len(notes_of(manifest, file).get("fallbacks", ())),
        )
        for file in wanted
    ]


def given_files(paths: Sequence[Path], taken: Sequence[str] = ()) -> list[Candidate]:
    """Files that others made, named by their stems. Raises ObserverError naming every one that is no GGUF."""
    found: list[Candidate] = []
    faults = []
    for path in paths:
        try:
            header = read_header(path)
        except ObserverError as error:
            faults.append(str(error))
            continue
        names = {*taken, *(candidate.name for candidate in found)}
        free = (f"{path.stem}-{n}" for n in count(2) if f"{path.stem}-{n}" not in names)
        name = next(free) if path.stem in names else path.stem
        has_imatrix = any(key.startswith("quantize.imatrix.") for key in header.metadata)
        found.append(Candidate(name, path, path.stem, has_imatrix))
    raise_all(faults)
    return found
