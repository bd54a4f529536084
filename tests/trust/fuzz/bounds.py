"""How long and how large the handling of one input may be, and what is kept of a fault."""

from __future__ import annotations

import contextlib
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from observer.paths import PROJECT_ROOT

MAX_INPUT_BYTES = 1 << 16
MAX_START_BYTES = 1 << 14
"""Of an input to start from."""
CPU_SECONDS, MEGABYTES = 5.0, 512
"""For one input of at most MAX_INPUT_BYTES: processor time, and memory beyond what the process has."""


class TooSlow(Exception):
    """The handling of an input went past its processor time."""


@dataclass(frozen=True)
class Fault:
    """What an input did; faults of one `signature` (kind and place) count as one."""

    kind: str
    place: str
    text: str

    @property
    def signature(self) -> str:
        return f"{self.kind} at {self.place}"


@contextlib.contextmanager
def bounds(cpu_seconds: float = CPU_SECONDS, megabytes: int | None = MEGABYTES) -> Iterator[None]:
    """Raise TooSlow, or have Python raise MemoryError, past these. The main thread's alone.

    Code in C is stopped when it comes back; who calls this watches for what never does.
    """

    def stop(*_: object) -> None:
        raise TooSlow(f"took more than {cpu_seconds:g} s of processor time")

    handler = signal.signal(signal.SIGPROF, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if megabytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (_memory_bytes() + megabytes * 1_000_000, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, handler)


def fault_of(
    run: Callable[[bytes], None], data: bytes, cpu_seconds: float = CPU_SECONDS, megabytes: int | None = MEGABYTES
) -> Fault | None:
    """What goes wrong with an input, if anything."""
    try:
        with bounds(cpu_seconds, megabytes):
            run(data)
    except Exception as error:
        return _described(error)
    return None


def smaller(data: bytes, is_faulty: Callable[[bytes], bool]) -> bytes:
    """The input without what the fault does not need: ever smaller pieces are left out while it stays."""
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data):
            shorter = data[:start] + data[start + size :]
            if is_faulty(shorter):
                data = shorter
            else:
                start += size
        size //= 2
    return data


def _described(error: Exception) -> Fault:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _is_of("observer", frame) or _is_of("eval", frame)]
    tested = [frame for frame in ours if not Path(frame.filename).name.startswith("fuzz")] or ours
    place = f"{Path(tested[-1].filename).relative_to(PROJECT_ROOT).as_posix()}:{tested[-1].name}" if tested else "?"
    if isinstance(error, AssertionError) and ours:
        place += f", {ours[-1].name}: {ours[-1].line}"
    return Fault(type(error).__name__, place, "".join(traceback.format_exception(error, limit=-12))[-4_000:])


def _is_of(package: str, frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(PROJECT_ROOT / package)


def _memory_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
