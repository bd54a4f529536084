"""How long and how large the handling of one input may be."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

MAX_INPUT_BYTES = 1 << 16
MAX_START_BYTES = 1 << 14
"""Of an input to start from."""
CPU_SECONDS, MEGABYTES = 5.0, 512
"""For one input of at most MAX_INPUT_BYTES: processor time, and memory beyond what the process has."""


class TooSlow(Exception):
    """The handling of an input went past its processor time."""


@contextlib.contextmanager
def bounds(cpu_seconds: float = CPU_SECONDS, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Raise TooSlow, or have Python raise MemoryError, past these. The main thread's alone.

    Code in C is stopped when it comes back; who calls this watches for what never does.
    """

    def stop(*_: object) -> None:
        raise TooSlow(f"took more than {cpu_seconds:g} s of processor time")

    handler = signal.signal(signal.SIGPROF, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory_bytes() + megabytes * 1_000_000, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, handler)


def _memory_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
