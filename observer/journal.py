"""Files that grow by whole lines: one process holds them, what is appended is on the disk or was never there, and a
last line that a kill cut short goes when the file is read again."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from observer.errors import ObserverError, raise_all
from observer.files import PRIVATE, disk_errors_explained


@contextlib.contextmanager
def open_journal(path: Path, remedy: str) -> Iterator[BinaryIO]:
    """Open a private file at its start, made when it is missing, and hold it against other processes.

    Raises ObserverError, ending in `remedy`, while another run holds it, and where it cannot be opened.
    """
    with disk_errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE), "r+b")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ObserverError(f"{path}: another run writes to it; {remedy}") from None
        yield stream


def read_lines(stream: BinaryIO, path: Path, starts: Sequence[bytes], take: Callable[[bytes], str]) -> None:
    """Give every line to `take`, which returns what is wrong with it, or nothing. Raises ObserverError naming all such.

    A last line without its end is dropped, from the file too if that is open for writing, when it begins as ours do
    (`starts`); what else stands there is not ours to drop.
    """
    faults: list[str] = []
    n_whole = 0
    for number, line in enumerate(stream, 1):
        if not line.endswith(b"\n") and any(line.startswith(start) or start.startswith(line) for start in starts):
            break
        n_whole += len(line)
        fault = take(line) or ("" if line.endswith(b"\n") else "a line without its end")
        faults += [f"{path}:{number}: {fault}"] if fault else []
    raise_all(faults, limit=5)
    if stream.writable() and n_whole < os.fstat(stream.fileno()).st_size:  # a whole file keeps its time of change
        stream.truncate(n_whole)


def append(stream: BinaryIO, path: Path, lines: bytes) -> None:
    """Write all of it to the end, or nothing; it is on the disk on return. Raises ObserverError."""
    descriptor = stream.fileno()
    with disk_errors_explained(path):
        end = os.fstat(descriptor).st_size
        try:
            while lines:
                lines = lines[os.write(descriptor, lines) :]
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, end)
            raise
