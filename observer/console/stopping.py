"""Ctrl-C and SIGTERM: a command ends in order, with one line and exit code 130 or 143.

Python calls a handler between two steps of the program. What it raises there is lost in a destructor, in a callback of
C, or behind a library's `except:`. So the wish to stop is kept, and raised again.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN_S = 0.05
"""Seconds until what a destructor or a callback has swallowed is raised again."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal asked to stop; `number` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def was_asked() -> bool:
    """Whether a signal has asked this command to stop, wherever that got to."""
    return bool(_asked)


def check_asked() -> None:
    """Raise Stopped when a signal asked for it and something swallowed it."""
    if _asked:
        raise Stopped(_asked[0])


def exit_code(stop: BaseException) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, as a shell has them."""
    return 128 + (stop.number if isinstance(stop, Stopped) else _asked[0] if _asked else signal.SIGINT)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise Stopped in the main thread; one that the parent ignores stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    kinds = [kind for kind in _SIGNALS if signal.getsignal(kind) is not signal.SIG_IGN]
    before = {kind: signal.signal(kind, _take) for kind in (*kinds, signal.SIGALRM)}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda swallowed: _again(swallowed) or hook(swallowed)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _take(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGALRM:
        _asked.append(number)
    check_asked()


def _again(swallowed: Any) -> bool:
    """Whether it was ours; a timer, since an exception here would be lost as well."""
    if _asked and isinstance(swallowed.exc_value, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return True
    return False
