"""What a run of `grade`, `extract` or `observe` counts, and its last words: the same for a file and for a folder of
parts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from observer.console.progress import Progress
from observer.errors import ObserverError, printable
from observer.observation import Asked, Observation

VERBS: dict[Asked, str] = {"grade": "graded", "extract": "extracted", "observe": "observed"}
REPEATED = "cut where the model repeated itself"
CONTEXT_CUT = "without their oldest context, for which the model had no room"


@dataclass
class Tally:
    """`n_had` rows were in `out` before, `n_bad` have no observation or one with a fault; `remarks` are told of so many
    though they are no fault."""

    task: Asked
    out: Path | None = None
    n_done: int = 0
    n_had: int = 0
    n_bad: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    rows_per_s: float = 0.0

    def tell(self, place: str, reason: str, progress: Progress | None = None, *, kept: str = "") -> None:
        """One more bad row. Of a fault from an earlier run, `kept` is what to delete for the row to be asked again."""
        self.n_bad += 1
        advice = f" (kept in {self.out}; delete {kept} or name another --out to ask again)" if kept else ""
        line = f"{place}: {reason}{advice}"
        progress.say(line) if progress else print(printable(line), file=sys.stderr)

    def summary(self, *more: str) -> str:
        """What was done, in one line."""
        done = f"{self.n_done:,} {VERBS[self.task]}"
        parts = [
            f"{done} ({self.rows_per_s:.1f} a second)" if self.n_done > 1 else done,
            f"{self.n_had:,} were in {self.out} before" if self.n_had else "",
            f"{self.n_bad:,} with a fault" if self.n_bad else "",
            *(f"{count:,} {remark}" for remark, count in self.remarks.items()),
            *more,
        ]
        return "; ".join(filter(None, parts))


class Run(Protocol):
    tally: Tally

    def run(self) -> None: ...

    def n_kept(self) -> int:
        """Rows whose answers are there, wherever the run was cut."""
        ...

    def summary(self) -> str: ...


def run_to_end(run: Run) -> int:
    """The run with its last words on stderr; returns 1 when rows had a fault, 130 when interrupted."""
    out = run.tally.out
    try:
        run.run()
    except KeyboardInterrupt:
        goes_on = f"{out} is whole, the same command goes on there" if out else "--out FILE could go on"
        print(f"\ninterrupted after {run.n_kept():,}: {goes_on}", file=sys.stderr)
        return 130
    except ObserverError as error:
        if out and (n_rows := run.n_kept()):
            raise ObserverError(f"{error}\n{out} holds {n_rows:,} answers; the same command goes on there") from error
        raise
    print(run.summary(), file=sys.stderr)
    return int(run.tally.n_bad > 0)


def remarks_on(observations: Sequence[Observation]) -> Counter[str]:
    """What is to be told of observations though it is no fault, and of how many."""
    remarks = Counter(CONTEXT_CUT for observation in observations if observation.context_cut)
    remarks.update(REPEATED for observation in observations if observation.repeated)
    return remarks
