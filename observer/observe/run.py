"""One run of `observer grade`, `extract` or `observe`: read, skip what is done, ask in batches, write, remember."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from observer.console.progress import Progress
from observer.memory.facts import OperationKind
from observer.memory.store import Store
from observer.observation import Asked, Exchange, Observation, id_of_another
from observer.observe.observations_file import Ledger, to_line
from observer.observe.reading import Reader, Row
from observer.observe.streaming import arriving, batches
from observer.observe.tally import VERBS, Tally, remarks_on
from observer.turns.before_model import prepare
from observer.turns.inputs import Unreadable
from observer.turns.row_fields import unused_fields

if TYPE_CHECKING:
    from observer.client import Observer

BATCH_ROWS = 64


@dataclass
class Session:
    """What a run needs, and what it counts. `open_observer` is called once there is something to ask."""

    tally: Tally
    reader: Reader
    open_observer: Callable[[], Observer]
    ledger: Ledger | None = None
    memory: Store | None = None
    is_pretty: bool = False
    changes: Counter[OperationKind] = field(default_factory=Counter)

    def run(self) -> None:
        """Raises ObserverError for what fails every row alike; what was written until then stays."""
        with contextlib.ExitStack() as stack:
            self._catch_up()
            is_shown = self.ledger is not None or not self.is_pretty
            progress = Progress(
                VERBS[self.tally.task], self.reader.total_bytes, in_bytes=True, unit=" rows", is_shown=is_shown
            )
            stack.callback(progress.close)
            observer: Observer | None = None
            in_batches = arriving if self.reader.is_live else batches
            for found in in_batches(self.reader.rows(), BATCH_ROWS):
                for warning in self.reader.untimed_fields():
                    progress.say(warning)
                rows = list(self._to_do(found, progress))
                if not rows:
                    continue
                if observer is None:
                    observer = stack.enter_context(self.open_observer())
                    progress.begin(self.reader.n_bytes)
                    if self.ledger:
                        self.ledger.check_model(observer.name)
                self._take(rows, observer, progress)
                progress.advance(len(rows), self.reader.n_bytes)
            self.tally.rows_per_s = progress.per_s

    def n_kept(self) -> int:
        """In the file, if there is one: a signal may come between a write and our count of it."""
        return self.ledger.n_lines() if self.ledger else self.tally.n_done

    def summary(self) -> str:
        """What was done, in one line."""
        n_added, n_ended = self.changes[OperationKind.ADD], self.changes[OperationKind.INVALIDATE]
        remembered = f"{self.memory.path}: {n_added:,} added, {n_ended:,} ended" if self.memory else ""
        return self.tally.summary(remembered, unused_fields(self.reader.unused_fields))

    def _catch_up(self) -> None:
        """Remember what earlier calls wrote: they may have had no --memory, or were killed before the last of it."""
        if self.ledger and self.memory:
            for observations in batches(self.ledger.observations(), BATCH_ROWS):
                self._remember(observations)

    def _to_do(self, found: Sequence[Row | Unreadable], progress: Progress) -> Iterator[Row]:
        """The rows to ask about; of bad rows, and of those that are done with a fault, tell."""
        for row in found:
            if isinstance(row, Unreadable):
                self.tally.tell(row.place, row.reason, progress)
                continue
            row = self._with_own_id(row)
            if self.ledger and row.id in self.ledger.done:
                self.tally.n_had += 1
                if fault := self.ledger.done[row.id]:
                    self.tally.tell(row.place, fault, progress, kept="its line")
            else:
                yield row

    def _with_own_id(self, row: Row) -> Row:
        """With an id of its own where the file has the row's for another text, as of logs that count anew each day."""
        known = self.ledger.text_hashes.get(row.id) if self.ledger else None
        if known is None or known == (text_hash := prepare(row.exchange).text_hash):
            return row
        return Row(row.place, row.exchange.model_copy(update={"id": id_of_another(row.id, text_hash)}))

    def _take(self, rows: Sequence[Row], observer: Observer, progress: Progress) -> None:
        observations = ask_batch(observer, self.tally.task, [row.exchange for row in rows])
        self._remember(observations)  # before they are written: a line in the file says that all of it is done
        self._write(rows, observations)
        self.tally.n_done += len(rows)
        self.tally.remarks += remarks_on(observations)
        for row, observation in zip(rows, observations, strict=True):
            if observation.fault:
                self.tally.tell(row.place, observation.fault, progress)

    def _remember(self, observations: Sequence[Observation]) -> None:
        if self.memory:
            self.changes.update(operation.kind for operation in self.memory.apply_all(observations))

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


def ask_batch(observer: Observer, task: Asked, exchanges: Sequence[Exchange]) -> list[Observation]:
    """What the command of that name asks of many exchanges."""
    ask = {"grade": observer.grade_many, "extract": observer.extract_many, "observe": observer.observe_many}
    return ask[task](exchanges)


def default_model(outputs: Path = Path("outputs")) -> str:
    """The run whose GGUF files are the newest, else the name that modelfiles/ gives a model in Ollama."""
    files = sorted(outputs.glob("*/gguf/*.gguf"), key=lambda file: file.stat().st_mtime)
    return str(files[-1].parent.parent) if files else "ollama:qwen3-observer"
