"""A finished run read back from its folder, wherever that lies now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from observer.config import Config, load_config
from observer.errors import ObserverError
from observer.paths import RunPaths


@dataclass(frozen=True)
class Run:
    config: Config
    paths: RunPaths

    @property
    def train_files(self) -> tuple[Path, ...]:
        """What it was trained on: the split made of its own raw rows, or the configured one, and `data.more`."""
        data = self.config.data
        return (self.paths.data.train if data.utility or data.extraction else data.train, *data.more)

    @property
    def val(self) -> Path:
        """Its validation rows: those it was split from, else the configured file."""
        own = self.paths.data.val
        return own if own.exists() else self.config.data.val


def read_run(root: Path) -> Run:
    """Raises ObserverError when the folder is no run of ours."""
    config = RunPaths(root, "").config
    if not config.is_file():
        raise ObserverError(f"{root}: no run (it has no {config.name}); name a folder such as outputs/nano")
    resolved = load_config(config)
    return Run(resolved, RunPaths(root, resolved.run.name))
