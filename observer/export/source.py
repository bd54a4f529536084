"""What `observer export` is pointed at: a run, an adapter, a checkpoint or a model, and the base that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from observer.config import Config, ModelConfig
from observer.errors import ObserverError
from observer.export.quantize.imatrix import Calibration, calibration_of
from observer.paths import PROJECT_ROOT, TRAIN_JSONL, RunPaths
from observer.runs.finished_run import Run, read_run
from observer.weights.base import base_folder
from observer.weights.checkpoint import read_json_object
from observer.weights.tokenizer import tokenizer_folder

_MODEL, _ADAPTER = "config.json", "adapter_config.json"
_ROLES = ("adapter", "merged", "checkpoints")
"""Folder names that say what is in them, not which model it is."""


@dataclass(frozen=True)
class Source:
    """Either a `model` that can be converted as it is, or an `adapter` to be merged into its `base`.

    A model has a `base` too when one is known: they must differ.
    """

    name: str
    model: Path | None
    adapter: Path | None
    base: Path | None

    @property
    def shape_folder(self) -> Path:
        """A folder with the tensors' shapes; merging does not change them."""
        folder = self.model or self.base
        assert folder is not None, "an adapter is never without its base"
        return folder

    @property
    def tokenizer_folder(self) -> Path:
        if self.model or not self.adapter:
            return self.shape_folder
        return tokenizer_folder(self.adapter, self.shape_folder)

    @property
    def inputs(self) -> dict[str, Path]:
        """The folders that the export depends on."""
        folders = {"model": self.model, "adapter": self.adapter, "base": self.base}
        if self.model:
            folders.pop("adapter")
        return {role: folder for role, folder in folders.items() if folder}


def find_source(place: Path, base: Path | None = None) -> Source:
    """Tell what `place` is; `base` overrides the base that an adapter names.

    Raises ObserverError when it is none of these, or the base of an adapter is not on this machine.
    """
    if not place.is_dir():
        raise ObserverError(f"{place}: no such folder; name a run, an adapter, a checkpoint or a model's folder")
    paths, name = RunPaths(place, place.resolve().name), model_name(place)
    if (place / _MODEL).is_file():
        return Source(name, place, None, base)
    if (place / _ADAPTER).is_file():
        return Source(name, None, place, _base_of(place, base))
    if (paths.merged / _MODEL).is_file():
        return Source(name, paths.merged, paths.adapter, base or _base_on_this_machine(paths.adapter))
    if (paths.adapter / _ADAPTER).is_file():
        return Source(name, None, paths.adapter, _base_of(paths.adapter, base))
    if checkpoints := _checkpoints(place) or _checkpoints(paths.checkpoints):
        raise ObserverError(f"{place}: training has not ended here; name a checkpoint, such as {checkpoints[-1]}")
    raise ObserverError(f"{place}: has neither {_MODEL} nor {_ADAPTER}; name a run, an adapter or a model's folder")


def rows_for_imatrix(place: Path) -> Calibration | None:
    """Those that the run of `place` was trained on, else the shipped ones; None where they are not here."""
    run = run_of(place)
    calibration = calibration_of(run) if run else Calibration((TRAIN_JSONL,))
    return calibration if all(path.exists() for path in calibration.files) else None


def run_of(place: Path) -> Run | None:
    """The run that `place` is, or is a folder of."""
    folders = (place, *place.resolve().parents[:2])
    return next((read_run(folder) for folder in folders if RunPaths(folder, "").config.is_file()), None)


def model_name(place: Path) -> str:
    """The name of the files: `nano` for outputs/nano, outputs/nano/adapter and outputs/nano/merged."""
    parts = [part for part in place.resolve().parts if part not in _ROLES]
    is_checkpoint = parts[-1].startswith("checkpoint-") and len(parts) > 1
    return "-".join(parts[-2:]) if is_checkpoint else parts[-1]


def _base_of(adapter: Path, given: Path | None) -> Path:
    try:
        base = given or _named_base(adapter)
    except ObserverError as error:
        named = read_json_object(adapter / _ADAPTER).get("base_model_name_or_path")
        raise ObserverError(
            f"{adapter}: its base {named!r} is not on this machine ({error}); or name its folder with --base"
        ) from error
    if not (base / _MODEL).is_file():
        raise ObserverError(f"--base {base}: has no {_MODEL}; name the folder of the model the adapter was trained on")
    return base


def _base_on_this_machine(adapter: Path) -> Path | None:
    try:
        return _named_base(adapter) if (adapter / _ADAPTER).is_file() else None
    except ObserverError:
        return None


def _named_base(adapter: Path) -> Path:
    """The base that the adapter names: a folder from here or from the project, a GGUF, or one in the hub's cache."""
    settings = read_json_object(adapter / _ADAPTER)
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(named, str) or not isinstance(revision, str | None):
        raise ObserverError(f"{adapter / _ADAPTER}: base_model_name_or_path and revision must be text")
    for folder in (Path(named), PROJECT_ROOT / named):
        if (folder / _MODEL).is_file():
            return folder
    return base_folder(Config(model=ModelConfig(base=named, revision=revision)), download=False)


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
