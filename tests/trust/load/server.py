"""An ObservingServer in a process of its own, so that its memory and its threads are not the client's.

It computes next to nothing, which makes the client, not a model, the slow part. Every 200th question is refused with
503 first, as a busy server does, and has to be asked again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from observer.paths import python_path
from tests.support.observing_server import ObservingServer

REFUSES_EVERY = 200


@contextmanager
def answering() -> Iterator[str]:
    """Run it; yields its HOST:PORT."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    command = [sys.executable, "-m", "tests.trust.load.server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            host = process.stdout.readline().strip()
            assert host, "it did not start"
            yield host
        finally:
            process.kill()


if __name__ == "__main__":
    with ObservingServer(refuses_every=REFUSES_EVERY).running() as server:
        print(server.host, flush=True)
        threading.Event().wait()
