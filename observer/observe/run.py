"""One run of `observer grade`, `extract` or `observe`: read, skip what is done, ask in batches, write, remember."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from observer.console.progress import Progress
from observer.errors import ObserverError
from observer.memory.facts import OperationKind
from observer.memory.store import Store
from observer.observation import Asked, Observation, id_of_another
from observer.observe.observations_file import Ledger, to_line
from observer.observe.reading import BadRow, Reader, Row
from observer.observe.streaming import arriving, batches
from observer.turns.before_model import prepare
from observer.turns.row_fields import unused_fields

if TYPE_CHECKING:
    from observer.client import Observer

BATCH_ROWS = 64
REPEATED = "cut where the model repeated itself"
CONTEXT_CUT = "without their oldest context, for which the model had no room"
VERBS: dict[Asked, str] = {"grade": "graded", "extract": "extracted", "observe": "observed"}


@dataclass
class Session:
    """What a run needs, and what it counts. `open_observer` is called once there is something to ask."""

    task: Asked
    reader: Reader
    open_observer: Callable[[], Observer]
    ledger: Ledger | None = None
    memory: Store | None = None
    is_pretty: bool = False
    batch_rows: int = BATCH_ROWS
    n_done: int = 0
    n_had: int = 0
    n_bad: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    changes: Counter[OperationKind] = field(default_factory=Counter)
    rows_per_s: float = 0.0

    def run(self) -> None:
        """Raises ObserverError for what fails every row alike; what was written until then stays."""
        with contextlib.ExitStack() as stack:
            self._catch_up()
            is_shown = self.ledger is not None or not self.is_pretty
            progress = Progress(
                VERBS[self.task], self.reader.total_bytes, in_bytes=True, unit=" rows", is_shown=is_shown
            )
            stack.callback(progress.close)
            observer: Observer | None = None
            in_batches = arriving if self.reader.is_live else batches
            for found in in_batches(self.reader.rows(), self.batch_rows):
                for warning in self.reader.untimed_fields():
                    progress.say(warning)
                rows = self._to_do(found, progress)
                if not rows:
                    continue
                if observer is None:
                    observer = stack.enter_context(self.open_observer())
                    progress.begin(self.reader.n_bytes)
                    if self.ledger:
                        self.ledger.check_model(observer.name)
                self._take(rows, observer, progress)
                progress.advance(len(rows), self.reader.n_bytes)
            self.rows_per_s = progress.per_s

    def summary(self) -> str:
        """What was done, in one line."""
        parts = [f"{self.n_done:,} {VERBS[self.task]}"]
        if self.n_done > 1:
            parts[0] += f" ({self.rows_per_s:.1f} a second)"
        if self.ledger and self.n_had:
            parts.append(f"{self.n_had:,} were in {self.ledger.path} before")
        if self.n_bad:
            parts.append(f"{self.n_bad:,} with a fault")
        parts += remark_counts(self.remarks)
        if self.memory:
            n_added, n_ended = self.changes[OperationKind.ADD], self.changes[OperationKind.INVALIDATE]
            parts.append(f"{self.memory.path}: {n_added:,} added, {n_ended:,} ended")
        return "; ".join(filter(None, [*parts, unused_fields(self.reader.unused_fields)]))

    def _catch_up(self) -> None:
        """Remember what earlier calls wrote: they may have had no --memory, or were killed before the last of it."""
        if self.ledger and self.memory:
            for observation in self.ledger.observations():
                self._remember(observation)

    def _to_do(self, found: Sequence[Row | BadRow], progress: Progress) -> list[Row]:
        """The rows to ask about; of bad rows, and of those that are done with a fault, tell."""
        rows = []
        for row in found:
            if isinstance(row, BadRow):
                self._tell(row.place, row.reason, progress)
                continue
            row = self._with_own_id(row)
            if self.ledger and row.id in self.ledger.done:
                self.n_had += 1
                if fault := self.ledger.done[row.id]:
                    advice = f"kept in {self.ledger.path}; delete its line or name another --out to ask again"
                    self._tell(row.place, f"{fault} ({advice})", progress)
            else:
                rows.append(row)
        return rows

    def _with_own_id(self, row: Row) -> Row:
        """With an id of its own where the file has the row's for another text, as of logs that count anew each day."""
        known = self.ledger.text_hashes.get(row.id) if self.ledger else None
        if known is None or known == (text_hash := prepare(row.exchange).text_hash):
            return row
        return Row(row.place, row.exchange.model_copy(update={"id": id_of_another(row.id, text_hash)}))

    def _take(self, rows: Sequence[Row], observer: Observer, progress: Progress) -> None:
        ask = {"grade": observer.grade_many, "extract": observer.extract_many, "observe": observer.observe_many}
        observations = ask[self.task]([row.exchange for row in rows])
        for observation in observations:  # before they are written: a line in the file says that all of it is done
            self._remember(observation)
        self._write(rows, observations)
        self.n_done += len(rows)
        self.remarks += remarks_on(observations)
        for row, observation in zip(rows, observations, strict=True):
            if observation.fault:
                self._tell(row.place, observation.fault, progress)

    def _remember(self, observation: Observation) -> None:
        if self.memory and self.task != "grade":
            for operation in self.memory.apply(observation, str(observation.id)):
                self.changes[operation.kind] += 1

    def _write(self, rows: Sequence[Row], observations: Sequence[Observation]) -> None:
        if self.ledger:
            self.ledger.write(observations)
        elif self.is_pretty:
            from observer.console.tables import open_console
            from observer.observe.printing import print_observation

            console = open_console()
            for row, observation in zip(rows, observations, strict=True):
                print_observation(console, row.exchange.user_message, observation)
        else:
            sys.stdout.buffer.write(b"".join(map(to_line, observations)))
            sys.stdout.buffer.flush()

    def _tell(self, place: str, reason: str, progress: Progress) -> None:
        self.n_bad += 1
        progress.say(f"{place}: {reason}")


def remarks_on(observations: Sequence[Observation]) -> Counter[str]:
    """What is to be told of observations though it is no fault, and of how many."""
    remarks = Counter(CONTEXT_CUT for observation in observations if observation.context_cut)
    remarks.update(REPEATED for observation in observations if observation.repeated)
    return remarks


def remark_counts(remarks: Counter[str]) -> list[str]:
    """For a summary."""
    return [f"{count:,} {remark}" for remark, count in remarks.items()]


def default_model(outputs: Path = Path("outputs")) -> str:
    """The run whose GGUF files are the newest, else the name that modelfiles/ gives a model in Ollama."""
    files = sorted(outputs.glob("*/gguf/*.gguf"), key=lambda file: file.stat().st_mtime)
    return str(files[-1].parent.parent) if files else "ollama:qwen3-observer"


def explain_stop(session: Session, error: ObserverError) -> ObserverError:
    """The error, and where to go on from."""
    if session.ledger and (n_rows := session.ledger.n_lines()):
        return ObserverError(f"{error}\n{session.ledger.path} holds {n_rows:,} answers; the same command goes on there")
    return error
