"""One command at a time writes in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from observer.errors import ObserverError
from observer.files import disk_errors_explained


@contextmanager
def held_for_one_run(path: Path, fix: str = "give this one a folder of its own by --run-name") -> Iterator[None]:
    """Hold the lock file `path`, which names our process, until the block ends. `fix` is what to do otherwise.

    The system lets go of it when the process ends, however that comes. Raises ObserverError while another has it,
    and where nothing can be locked or written.
    """
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    with stream:
        if not _take(stream.fileno(), path):
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise ObserverError(f"{path.parent}: another run is at work here (process {holder}); wait for it, or {fix}")
        with disk_errors_explained(path):
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
        yield


@contextmanager
def held_folder(folder: Path, fix: str) -> Iterator[None]:
    """The same for a folder whose files are for others: nothing is left in it. `fix` is what to do otherwise."""
    with disk_errors_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _take(descriptor, folder):
            raise ObserverError(f"{folder}: another command is writing here; wait for it, or {fix}")
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> bool:
    with disk_errors_explained(path):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
