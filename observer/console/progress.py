"""Progress on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

from observer.console.durations import format_duration
from observer.errors import printable

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Things done, their rate, and the time left; `had` of the `total` were done before and make no rate.

    Where the number of things is not known, `total` is that of the bytes to be read, and `in_bytes` says so.
    """

    def __init__(
        self, label: str, total: int | None, *, had: int = 0, in_bytes: bool = False, unit: str = "it",
        is_shown: bool = True, every_s: float = SECONDS_BETWEEN_LINES,
    ) -> None:  # fmt: skip
        self.n_done = 0
        self._label, self._total, self._had, self._in_bytes, self._unit = label, total, had, in_bytes, unit
        self._is_shown, self._every_s = is_shown, every_s
        self._bar = None
        self.begin(0 if in_bytes else had)
        if is_shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=label, total=None if in_bytes else total, initial=had, unit=unit, unit_scale=unit == "B",
                leave=False, file=sys.stderr,
            )  # fmt: skip

    def begin(self, place: int) -> None:
        """The rate counts from now, when `place` of the total has been reached."""
        self._begun_at, self._start = place, time.monotonic()
        self._shown_at = self._start

    @property
    def per_s(self) -> float:
        return self.n_done / max(time.monotonic() - self._start, 1e-9)

    def advance(self, n: int = 1, place: int | None = None, note: str = "") -> None:
        """`n` more are done; `place` is how far in the total that is, where it is not counted in these things."""
        self.n_done += n
        place = self._had + self.n_done if place is None else place
        if self._bar is not None:
            shown = [self._left(place) if self._in_bytes else "", note]
            self._bar.set_postfix_str(", ".join(filter(None, shown)), refresh=False)
            self._bar.update(n)
        elif self._is_shown and time.monotonic() - self._shown_at >= self._every_s:
            self._shown_at = time.monotonic()
            rate = "" if self._unit == "B" else f"{self.per_s:,.1f} a second"
            parts = filter(None, [self._amount(place), rate, self._left(place), note])
            self.say(f"{self._label}: {', '.join(parts)}")

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(printable(line), file=sys.stderr)
        else:
            print(printable(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _amount(self, place: int) -> str:
        if self._in_bytes or self._total is None:
            return f"{self.n_done:,}"
        if self._unit == "B":
            return f"{place / 1e6:,.0f} of {self._total / 1e6:,.0f} MB"
        return f"{place:,} of {self._total:,}"

    def _left(self, place: int) -> str:
        """Nothing where nobody knows: what was read before `begin` makes no estimate."""
        if not self._total or place <= self._begun_at:
            return ""
        left_s = (time.monotonic() - self._start) / (place - self._begun_at) * (self._total - place)
        return f"about {format_duration(left_s)} left"


@contextlib.contextmanager
def show_progress(label: str, total: int, unit: Literal["it", "B"] = "it") -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with what is done and the total; `unit` B shows bytes as MB."""
    with contextlib.closing(Progress(label, total, unit=unit)) as progress:
        yield lambda done, _total: progress.advance(done - progress.n_done)
