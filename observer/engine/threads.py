"""Several iterators driven at once, each in a thread of its own, for work that leaves Python's lock alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
_Found = list[T] | BaseException | None
"""What a step of a work yielded, what it raised, or that it ended."""
_WAIT_S = 0.2
"""Between two waits Ctrl-C is seen where a wait hides it, as on Windows."""


def run_side_by_side(works: Sequence[Generator[list[T]]], receive: Callable[[list[T]], None]) -> None:
    """Drive every work to its end and hand what a step of it yields, if anything, to `receive`, in this thread alone.

    One work is driven in this thread too. What any of them raises, or `receive`, or Ctrl-C here, ends all of them
    after the step they are in, and is raised when they have ended.
    """
    if len(works) == 1:
        with contextlib.closing(works[0]) as work:
            for items in work:
                if items:
                    receive(items)
        return
    stop = threading.Event()
    found: SimpleQueue[_Found[T]] = SimpleQueue()

    def drive(work: Generator[list[T]]) -> None:
        try:
            with contextlib.closing(work):
                for items in work:
                    if items:
                        found.put(items)
                    if stop.is_set():
                        break
        except BaseException as error:  # raised in the caller's thread
            found.put(error)
        finally:
            found.put(None)

    threads = [threading.Thread(target=drive, args=(work,)) for work in works]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        _receive(found, len(works), receive)
    finally:
        stop.set()
        for thread in started:
            thread.join()


def _receive(found: SimpleQueue[_Found[T]], n_left: int, receive: Callable[[list[T]], None]) -> None:
    while n_left:
        try:
            items = found.get(timeout=_WAIT_S)
        except Empty:
            continue
        if isinstance(items, BaseException):
            raise items
        if items is None:
            n_left -= 1
        else:
            receive(items)
