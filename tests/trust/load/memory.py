"""The resident memory of processes, sampled each second, and whether it stays flat.

Resident memory moves in steps, as the allocator takes and returns pages, so the slope is Theil and Sen's: the median of
the slopes between all pairs of samples, which single steps do not move. Its interval takes samples as independent; they
are not quite, so it is too narrow by an amount that we do not know.

glibc keeps freed blocks of up to a kilobyte for the thread that freed them: seven of each of 64 sizes, 230 KB a thread
when all are full. Dozens of threads fill theirs for many minutes, which looks like a leak and hides one, so the nightly
set measures memory without these caches (GLIBC_TUNABLES=glibc.malloc.tcache_count=0).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import psutil

FLAT_MB_PER_MIN = 1.0
"""The bound: a leak of 60 MB an hour would pass unseen."""
WARM_UP_SHARE = 0.2
"""Of the samples, those that come first and are left out of the slope: contexts open, caches fill."""
_FEWEST_SAMPLES = 60


@dataclass(frozen=True)
class MemoryUse:
    """MB (1e6 bytes); the slope and its 95 % interval are of what follows the warm-up, None of fewer than sixty."""

    n_samples: int
    start_mb: float
    end_mb: float
    max_mb: float
    mb_per_min: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_flat(self) -> bool:
        """The whole interval is below the bound."""
        return self.high is not None and self.high < FLAT_MB_PER_MIN

    @property
    def figures(self) -> dict[str, object]:
        """For the page."""
        slope = (
            "too short" if self.mb_per_min is None else f"{self.mb_per_min:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        )
        levels = f"{self.start_mb:.0f} to {self.end_mb:.0f}, at most {self.max_mb:.0f}"
        return {"samples": self.n_samples, "MB": levels, "MB/min": slope}


@dataclass
class MemorySampler:
    """Samples `pid` (this process unless given) and its children once every `seconds` while the block runs."""

    pid: int = field(default_factory=os.getpid)
    seconds: float = 1.0
    with_children: bool = False
    samples: list[tuple[float, float]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        process = psutil.Process(self.pid)
        while True:
            try:
                family = [process, *(process.children(recursive=True) if self.with_children else [])]
                self.samples.append((time.monotonic() - began, sum(map(_resident_bytes, family)) / 1e6))
            except psutil.NoSuchProcess:
                return
            if self._stop.wait(self.seconds):
                return


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # a child that has ended since it was listed
        return 0


def memory_use(samples: Sequence[tuple[float, float]]) -> MemoryUse:
    """What (seconds, MB) pairs come to; at least one is expected."""
    levels = [level for _, level in samples]
    first_s, last_s = samples[0][0], samples[-1][0]
    settled = [pair for pair in samples if pair[0] >= first_s + WARM_UP_SHARE * (last_s - first_s)]
    whole = MemoryUse(len(samples), levels[0], levels[-1], max(levels))
    if len(settled) < _FEWEST_SAMPLES:
        return whole
    from scipy.stats import theilslopes

    minutes, settled_mb = [at_s / 60 for at_s, _ in settled], [level for _, level in settled]
    found: Any = theilslopes(settled_mb, minutes, alpha=0.95)
    slope, low, high = map(float, (found.slope, found.low_slope, found.high_slope))
    return replace(whole, mb_per_min=slope, low=low, high=high)
