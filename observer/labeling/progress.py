"""How far a run is, on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from observer.console.durations import format_duration

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts answers of `total`; rate and ETA leave out what the ledger already had."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._had = total, done, done
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=total, initial=done, unit="answer", file=sys.stderr) if sys.stderr.isatty() else None

    def advance(self, cost_usd: float) -> None:
        """One more answer; `cost_usd` is the whole cost so far."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"${cost_usd:.4f}", refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            rate = (self._done - self._had) / (self._last - self._start)
            eta_s = (self._total - self._done) / rate
            self.say(f"{self._done:,}/{self._total:,}  {rate:.1f}/s  ETA {format_duration(eta_s)}  ${cost_usd:.4f}")

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
