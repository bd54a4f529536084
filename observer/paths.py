"""Every artefact's name, spelled once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent

GRADING_JSONL = Path("data/utility_grading.jsonl")
EXTRACTION_JSONL = Path("data/entity_extraction.jsonl")
TRAIN_JSONL = Path("data/train.jsonl")
VAL_JSONL = Path("data/val.jsonl")
EVERYDAY_JSONL = Path("data/everyday.jsonl")
"""Natural rows of both tasks with the label shares of everyday use; `source` says which are held out."""
ANNOTATIONS_JSONL = Path("data/annotations.jsonl")
"""What each of the two annotators of a natural row said, before adjudication."""
CHALLENGE_JSONL = (Path("eval/challenge/grading.jsonl"), Path("eval/challenge/extraction.jsonl"))
ATTACKS_JSONL = (Path("eval/attacks/grading.jsonl"), Path("eval/attacks/extraction.jsonl"))
ATTACK_GOALS = Path("eval/attacks/goals.json")
"""What each hostile row is after, by its id: rows themselves know no such field."""
NANO_BASE = Path("data/nano-base")
MODELFILES = Path("modelfiles")
ADAPTER = "adapter"
"""Stands where else the quantization does: `gguf/<run>-adapter.gguf`, `gguf/Modelfile-adapter`."""


def cache_folder() -> Path:
    """Where files go that can be made again: `$XDG_CACHE_HOME/qwen3-observer`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen3-observer"


def python_path() -> str:
    """PYTHONPATH for a child process that runs our modules, whatever folder it works in."""
    return os.pathsep.join([str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@dataclass(frozen=True)
class DataPaths:
    """The files that are made of raw rows, in one folder."""

    root: Path

    @property
    def train(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def val(self) -> Path:
        return self.root / "val.jsonl"

    @property
    def quarantine(self) -> Path:
        """Lines that could not be read as rows, each with its place and reasons."""
        return self.root / "quarantine.jsonl"

    @property
    def set_aside(self) -> Path:
        """Sound raw rows that the split can use in neither part."""
        return self.root / "set-aside.jsonl"


def modelfile_name(quantization: str, variant: str = "") -> str:
    """Of the Modelfile beside a GGUF of this type, such as `Modelfile-q8_0-grade`."""
    return "-".join(filter(None, ["Modelfile", quantization, variant]))


@dataclass(frozen=True)
class RunPaths:
    """The files of one run below `outputs/<run>/`."""

    root: Path
    name: str

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def lock(self) -> Path:
        """Held by the run at work here; it names the process."""
        return self.root / "run.lock"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def data(self) -> DataPaths:
        return DataPaths(self.root / "data")

    @property
    def log(self) -> Path:
        return self.root / "training.log"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def loss_curve(self) -> Path:
        return self.root / "loss.png"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def gguf(self, quantization: str) -> Path:
        """The GGUF of one type, such as `gguf/qwen3-observer-q4_k_m.gguf`."""
        return self.root / "gguf" / f"{self.name}-{quantization}.gguf"

    @property
    def imatrix(self) -> Path:
        """The importance matrix of the merged model on its own training rows, in llama.cpp's GGUF format."""
        return self.root / f"{self.name}-imatrix.gguf"

    @property
    def model_card(self) -> Path:
        """The README.md beside the GGUF files, which makes of their folder something to hand on."""
        return self.root / "gguf" / "README.md"

    def modelfile(self, variant: str = "") -> Path:
        """`Modelfile`, or `Modelfile-grade` and the like."""
        return self.root / (f"Modelfile-{variant}" if variant else "Modelfile")

    def modelfile_of(self, quantization: str, variant: str = "") -> Path:
        """One beside the GGUF files."""
        return self.root / "gguf" / modelfile_name(quantization, variant)

    def report(self, stem: str, suffix: str) -> Path:
        return self.reports / f"{stem}.{suffix}"
