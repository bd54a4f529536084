"""A disk of a few kilobytes that can be full, grow, and become read-only: a tmpfs, where root may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """Mounted at `root`."""

    root: Path

    def remount(self, options: str) -> None:
        """Such as `size=8m` or `ro`."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.root)], check=True)

    def names(self) -> set[str]:
        """Every file, by its path below the root."""
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is free inside."""
        filler = self.root / "filler"
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        try:
            yield
        finally:
            filler.unlink()


@contextlib.contextmanager
def small_disk(root: Path, size: str) -> Iterator[SmallDisk]:
    """Mount one of `size`, such as 512k; skips the test where that is not allowed."""
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        why = done.stderr.strip()
    except FileNotFoundError:
        why = "no mount command"
    if why:
        pytest.skip(f"a small disk cannot be mounted here: {why}")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
