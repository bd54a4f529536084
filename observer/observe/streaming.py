"""Rows in batches: full ones where all is there at once, whatever has come where it comes slowly."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from observer.console.durations import format_duration
from observer.errors import printable

T = TypeVar("T")
WAIT_S = 0.2
SECONDS_BETWEEN_LINES = 15.0
_END = object()


def batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size`, the last one shorter: the same rows make the same batches."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def arriving(rows: Iterable[T], size: int, wait_s: float = WAIT_S) -> Iterator[list[T]]:
    """Lists of at most `size`: a row waits no longer than `wait_s` for others to come with it.

    `rows` is read in a thread; what it raises is raised here.
    """
    waiting: queue.Queue[object] = queue.Queue(maxsize=2 * size)

    def read() -> None:
        try:
            for row in rows:
                waiting.put(row)
            waiting.put(_END)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=read, daemon=True).start()
    last: object = None
    while last is None:
        batch, last = _take_from(waiting, size, wait_s)
        if batch:
            yield batch  # pyright: ignore[reportReturnType]
    if isinstance(last, BaseException):
        raise last


def _take_from(waiting: queue.Queue[object], size: int, wait_s: float) -> tuple[list[object], object]:
    """What has come, the first of it awaited; and what ended it all, or None."""
    batch: list[object] = []
    deadline: float | None = None
    while len(batch) < size:
        try:
            row = waiting.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0))
        except queue.Empty:
            break
        if row is _END or isinstance(row, BaseException):
            return batch, row
        batch.append(row)
        deadline = deadline or time.monotonic() + wait_s
    return batch, None


class Meter:
    """Rows done and their rate, on stderr: a counter on a terminal, otherwise a line now and then."""

    def __init__(self, verb: str, *, total_bytes: int | None, is_shown: bool) -> None:
        self.n_done = 0
        self._verb, self._total_bytes, self._is_shown = verb, total_bytes, is_shown
        self._start = self._shown_at = time.monotonic()
        self._bytes_before = 0
        self._bar = None
        if is_shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=verb, unit=" rows", file=sys.stderr, leave=False)

    def begin(self, n_bytes: int) -> None:
        """The model is there, and what was done before has been passed over: the rate counts from now."""
        self._start = self._shown_at = time.monotonic()
        self._bytes_before = n_bytes

    @property
    def rows_per_s(self) -> float:
        return self.n_done / max(time.monotonic() - self._start, 1e-9)

    def advance(self, n_rows: int, n_bytes: int) -> None:
        """`n_rows` more are done; `n_bytes` of the files have been read so far."""
        self.n_done += n_rows
        left = self._left(n_bytes)
        if self._bar is not None:
            self._bar.set_postfix_str(left, refresh=False)
            self._bar.update(n_rows)
        elif self._is_shown and time.monotonic() - self._shown_at > SECONDS_BETWEEN_LINES:
            self._shown_at = time.monotonic()
            parts = filter(None, [f"{self._verb}: {self.n_done:,}", f"{self.rows_per_s:.1f} a second", left])
            self.say(", ".join(parts))

    def say(self, line: str) -> None:
        line = printable(line)
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _left(self, n_bytes: int) -> str:
        """Bytes stand for rows, whose number is not known; the batch at hand was read before `begin`, so that the
        first of them makes no estimate."""
        if not self._total_bytes or n_bytes <= self._bytes_before:
            return ""
        seconds_per_byte = (time.monotonic() - self._start) / (n_bytes - self._bytes_before)
        return f"about {format_duration(seconds_per_byte * (self._total_bytes - n_bytes))} left"
