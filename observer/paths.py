"""Every artefact's name, spelled once."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent

GRADING_JSONL = Path("data/utility_grading.jsonl")
EXTRACTION_JSONL = Path("data/entity_extraction.jsonl")
TRAIN_JSONL = Path("data/train.jsonl")
VAL_JSONL = Path("data/val.jsonl")
EVERYDAY_JSONL = Path("data/everyday.jsonl")
"""Natural rows of both tasks with the label shares of everyday use; `source` says which are held out."""
PERSONAL_JSONL = Path("data/personal.jsonl")
"""Natural rows of both tasks in which people tell more of themselves, all for training."""
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


class DataPaths:
    """The files that are made of raw rows, in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train = root / "train.jsonl"
        self.val = root / "val.jsonl"
        self.quarantine = root / "quarantine.jsonl"
        """Lines that could not be read as rows, each with its place and reasons."""
        self.set_aside = root / "set-aside.jsonl"
        """Sound raw rows that the split can use in neither part."""


def modelfile_name(quantization: str, variant: str = "") -> str:
    """Of the Modelfile beside a GGUF of this type, such as `Modelfile-q8_0-grade`."""
    return "-".join(filter(None, ["Modelfile", quantization, variant]))


class RunPaths:
    """The files of one run below `outputs/<run>/`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.config = root / "config.yaml"
        self.lock = root / "run.lock"
        """Held by the run at work here; it names the process."""
        self.manifest = root / "manifest.json"
        self.data = DataPaths(root / "data")
        self.log = root / "training.log"
        self.metrics = root / "metrics.jsonl"
        self.loss_curve = root / "loss.png"
        self.tensorboard = root / "tensorboard"
        self.checkpoints = root / "checkpoints"
        self.adapter = root / "adapter"
        self.merged = root / "merged"
        self.reports = root / "reports"
        self.imatrix = root / f"{name}-imatrix.gguf"
        """The importance matrix of the merged model on its own training rows, in llama.cpp's GGUF format."""
        self.model_card = root / "gguf" / "README.md"
        """The README.md beside the GGUF files, which makes of their folder something to hand on."""

    def gguf(self, quantization: str) -> Path:
        """The GGUF of one type, such as `gguf/qwen3-observer-q4_k_m.gguf`."""
        return self.root / "gguf" / f"{self.name}-{quantization}.gguf"

    def modelfile(self, variant: str = "") -> Path:
        """`Modelfile`, or `Modelfile-grade` and the like."""
        return self.root / (f"Modelfile-{variant}" if variant else "Modelfile")

    def modelfile_of(self, quantization: str, variant: str = "") -> Path:
        """One beside the GGUF files."""
        return self.root / "gguf" / modelfile_name(quantization, variant)

    def report(self, stem: str, suffix: str) -> Path:
        return self.reports / f"{stem}.{suffix}"
