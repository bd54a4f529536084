"""One run at a time in a run's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from observer.errors import ObserverError


@contextmanager
def held_for_one_run(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which names our process, until the block ends.

    The system lets go of it when the process ends, however that comes. Raises ObserverError while another has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise ObserverError(
                f"{path.parent}: another run is at work here (process {holder}); wait for it, "
                "or give this one a folder of its own by --run-name"
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
