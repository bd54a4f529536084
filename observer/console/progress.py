"""Progress on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

from observer.console.durations import format_duration

SECONDS_BETWEEN_LINES = 15


@contextlib.contextmanager
def show_progress(label: str, total: int, unit: Literal["it", "B"] = "it") -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with what is done and the total; `unit` B shows bytes as MB."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit=unit, unit_scale=unit == "B", leave=False) as bar:
            yield lambda done, _total: (bar.update(done - bar.n), None)[1]
        return
    start = shown_at = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at > SECONDS_BETWEEN_LINES:
            shown_at = time.monotonic()
            left_s = (shown_at - start) / max(done, 1) * (of - done)
            amount = f"{done / 1e6:,.0f} of {of / 1e6:,.0f} MB" if unit == "B" else f"{done:,} of {of:,}"
            print(f"{label}: {amount}, about {format_duration(left_s)} left", file=sys.stderr, flush=True)

    yield show
