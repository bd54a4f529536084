"""The files that are benchmarked: what a run's types and importance matrix make, built where it is missing.

Files that were made here are on record with the hashes of what they were made of, so that a new training makes new
ones. The quality of the files is `rounds`'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from observer.errors import ObserverError, raise_all
from observer.files import check_writable
from observer.runs.manifest import Manifest
from observer.runs.stages import Stages

if TYPE_CHECKING:
    from observer.runs.finished_run import Run

ImatrixMode = Literal["both", "auto", "without"]
REFERENCE = "f16"
DEFAULT_TYPES = "f16 q8_0 q6_k q5_k_m q4_k_m iq4_xs q3_k_m iq3_xxs q2_k iq2_xs".split()
_DEFAULT_IMATRIX_ROWS = 256
_ANOTHER_FOLDER = "or name another folder with --work"
_DIRECT = ("f16", "bf16", "f32")


@dataclass(frozen=True)
class Wanted:
    """A type, with or without an importance matrix."""

    type_name: str
    has_imatrix: bool = False

    @property
    def name(self) -> str:
        return f"{self.type_name}-imatrix" if self.has_imatrix else self.type_name


@dataclass(frozen=True)
class Candidate:
    """A file to be measured; `name` tells it from the others in every table."""

    name: str
    path: Path
    type_name: str
    has_imatrix: bool
    n_fallbacks: int = 0
    """Tensors that got another type than asked for, since their rows do not divide by its block."""


def wanted_files(types: Sequence[str], mode: ImatrixMode, *, has_overrides: bool = False) -> list[Wanted]:
    """What to make of each type, the reference first.

    `both`: below 5 bits each with and without a matrix, as far as llama.cpp allows; `auto`: as an export makes it;
    `without`: no matrix at all. Raises ObserverError naming every type that cannot be made.
    """
    from observer.weights.gguf_types import NEED_IMATRIX, check_quantizations, wants_imatrix

    check_quantizations(types, has_imatrix=mode != "without")
    wanted = [Wanted(REFERENCE)]
    for name in types:
        takes_matrix = mode != "without" and name not in _DIRECT and (wants_imatrix(name) or has_overrides)
        if not takes_matrix or (mode == "both" and name not in NEED_IMATRIX):
            wanted.append(Wanted(name))
        if takes_matrix:
            wanted.append(Wanted(name, has_imatrix=True))
    return list(dict.fromkeys(wanted))


def build(run: Run, wanted: Sequence[Wanted], folder: Path) -> list[Candidate]:
    """Make what is missing below `folder`, and return all of it in the order wanted; the run's own f16 is used.

    Raises ObserverError, before anything is written, for types that cannot be made and a disk too small.
    """
    stages = Stages(Manifest(folder / "manifest.json"))
    full = _full_file(run, folder, stages)
    matrix = _matrix(run, folder, stages) if any(want.has_imatrix for want in wanted) else None
    check_disk(run, wanted, folder, full, matrix)
    return [_make(run, want, folder, stages, full, matrix) for want in wanted]


def given_files(paths: Sequence[Path], taken: Sequence[str] = ()) -> list[Candidate]:
    """Files that others made, named by their stems. Raises ObserverError naming every one that is no GGUF."""
    from observer.export.gguf.header import read_header

    found: list[Candidate] = []
    faults = []
    for path in paths:
        try:
            header = read_header(path)
        except ObserverError as error:
            faults.append(str(error))
            continue
        same = [*taken, *(candidate.name for candidate in found)].count(path.stem)
        has_imatrix = any(key.startswith("quantize.imatrix.") for key in header.metadata)
        found.append(Candidate(f"{path.stem}-{same + 1}" if same else path.stem, path, path.stem, has_imatrix))
    raise_all(faults)
    return found


def check_disk(run: Run, wanted: Sequence[Wanted], folder: Path, full: Path, matrix: Path | None) -> None:
    """Raise ObserverError unless the files that are not there yet fit on the disk."""
    from observer.export.quantize.size_forecast import quantized_bytes

    needed = 0
    for has_imatrix in (False, True):
        part = [want for want in wanted if want.has_imatrix == has_imatrix and want.type_name not in _DIRECT]
        types = [want.type_name for want in part if not path_of(run, want, folder).exists()]
        if types:
            used = matrix if has_imatrix else None
            needed += sum(quantized_bytes(full, types, imatrix=used, overrides=run.config.export.tensor_types).values())
    if needed:
        print(f"to write below {folder}: {needed / 1e6:,.1f} MB", file=sys.stderr, flush=True)
    check_writable(folder, needed, _ANOTHER_FOLDER)


def path_of(run: Run, want: Wanted, folder: Path) -> Path:
    return folder / "gguf" / f"{run.config.run.name}-{want.name}.gguf"


def _full_file(run: Run, folder: Path, stages: Stages) -> Path:
    """The run's own f16, or one of its merged model."""
    own = run.paths.gguf(REFERENCE)
    if own.exists():
        return own
    merged = run.paths.merged
    if not merged.is_dir():
        raise ObserverError(f"{run.paths.root}: has neither {own.name} nor a merged model; finish the run first")
    path = path_of(run, Wanted(REFERENCE), folder)
    stages.run(f"gguf {REFERENCE}", {"merged": merged}, [path], lambda: _convert(run, REFERENCE, path))
    return path


def _matrix(run: Run, folder: Path, stages: Stages) -> Path:
    """The run's own importance matrix, or one of its merged model on the same sample of its training rows."""
    if run.paths.imatrix.exists():
        return run.paths.imatrix
    if not run.paths.merged.is_dir():
        raise ObserverError(
            f"{run.paths.merged}: not there, and an importance matrix is measured on it; use --imatrix without"
        )
    path, train = folder / "imatrix.gguf", _train_rows(run)
    n_rows = run.config.export.imatrix_rows or _DEFAULT_IMATRIX_ROWS

    def measure() -> None:
        from observer.export.quantize.imatrix import ensure_imatrix, sample_rows

        sample = sample_rows(_token_ids(run, train), n_rows, run.config.run.seed)
        ensure_imatrix(path, run.paths.merged, sample, datasets=[str(train)])

    inputs = {"merged": run.paths.merged, "train": train, "n_rows": n_rows, "seed": run.config.run.seed}
    stages.run("imatrix", inputs, [path], measure)
    return path


def _train_rows(run: Run) -> Path:
    own = run.paths.data.train
    return own if own.exists() else run.config.data.train


def _token_ids(run: Run, train: Path) -> list[list[int]]:
    from observer.data.dataset import read_split
    from observer.training.rows import encode_with, tokenize_rows
    from observer.weights.base import load_tokenizer

    rows = tokenize_rows(read_split(train), encode_with(load_tokenizer(run.paths.merged)))
    return [row.input_ids for row in rows]


def _make(run: Run, want: Wanted, folder: Path, stages: Stages, full: Path, matrix: Path | None) -> Candidate:
    if want.type_name == REFERENCE:
        return Candidate(want.name, full, want.type_name, has_imatrix=False)
    path, name = path_of(run, want, folder), f"gguf {want.name}"
    if want.type_name in _DIRECT:
        inputs: dict[str, Any] = {"merged": run.paths.merged}
        stages.run(name, inputs, [path], lambda: _convert(run, want.type_name, path))
        return Candidate(want.name, path, want.type_name, has_imatrix=False)
    used, overrides = (matrix if want.has_imatrix else None), dict(run.config.export.tensor_types)
    inputs = {"f16": full, "type": want.type_name, "overrides": overrides} | ({"imatrix": used} if used else {})
    stages.run(name, inputs, [path], lambda: _quantize(full, path, want.type_name, used, overrides))
    n_fallbacks = stages.manifest.notes(name)["n_fallbacks"]
    return Candidate(want.name, path, want.type_name, want.has_imatrix, n_fallbacks)


def _convert(run: Run, type_name: str, path: Path) -> None:
    from observer.export.gguf.verify import verify_gguf
    from observer.export.gguf.write import gguf_bytes, write_gguf

    check_writable(path.parent, gguf_bytes(run.paths.merged, type_name), _ANOTHER_FOLDER)
    write_gguf(run.paths.merged, path, type_name, name=run.config.run.name)
    verify_gguf(path, expected_file_type=type_name)


def _quantize(
    full: Path, path: Path, type_name: str, imatrix: Path | None, overrides: dict[str, str]
) -> dict[str, Any]:
    from observer.export.gguf.verify import verify_gguf
    from observer.export.quantize.quantize import quantize

    report = quantize(full, path, type_name, imatrix=imatrix, overrides=overrides)
    verify_gguf(path, expected_file_type=type_name)
    return {"n_fallbacks": len(report.fallbacks), "tensor_types": report.tensor_types}
