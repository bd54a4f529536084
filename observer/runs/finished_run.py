"""A finished run read back from its folder, wherever that lies now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from observer.config import Config, DataConfig, load_config
from observer.errors import ObserverError
from observer.paths import DataPaths, RunPaths


@dataclass(frozen=True)
class Run:
    config: Config
    paths: RunPaths

    @property
    def split(self) -> DataPaths | DataConfig:
        """Its `train` and `val`: the files made of raw rows of its own, or the configured ones."""
        data = self.config.data
        return self.paths.data if data.utility or data.extraction else data

    @property
    def train_files(self) -> tuple[Path, ...]:
        """What it was trained on: train of its split, and `data.more`."""
        return (self.split.train, *self.config.data.more)


def read_run(root: Path) -> Run:
    """Raises ObserverError when the folder is no run of ours."""
    config = RunPaths(root, "").config
    if not config.is_file():
        raise ObserverError(f"{root}: no run (it has no {config.name}); name a folder such as outputs/nano")
    resolved = load_config(config)
    return Run(resolved, RunPaths(root, resolved.run.name))
