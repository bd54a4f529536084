"""Rows in batches: full ones where all is there at once, whatever has come where it comes slowly."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
WAIT_S = 0.2
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
