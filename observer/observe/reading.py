"""What is to be observed: text on the command line, files and standard input, row by row as it comes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from observer.errors import ObserverError, raise_all
from observer.files import explain_os_error
from observer.observation import Exchange
from observer.schema import describe_fault
from observer.turns.inputs import STDIN, Item, Reading, Unreadable, checked, iter_inputs

FILE_SUFFIXES = frozenset(
    {".jsonl", ".json", ".ndjson", ".txt", ".log", ".md", ".csv", ".tsv", ".gz", ".bz2", ".xz", ".zst", ".parquet"}
)
"""An argument without blanks that ends so is meant as a file, there or not."""


@dataclass(frozen=True)
class Row:
    """An exchange and where it was read. Its id is the row's own, or place and text: edited text is another row."""

    place: str
    exchange: Exchange

    @property
    def id(self) -> str:
        assert self.exchange.id is not None
        return self.exchange.id


@dataclass
class Reader:
    """Reads `inputs` once. `at` is the time of rows that have none of their own."""

    inputs: Sequence[str]
    reading: Reading = field(default_factory=Reading)
    at: datetime | None = None
    unused_fields: Counter[str] = field(default_factory=Counter)
    n_bytes: int = 0
    _untimed: deque[Item] = field(default_factory=deque)
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.inputs = self.inputs or [STDIN]
        if STDIN in self.inputs and sys.stdin.isatty():
            raise ObserverError("nothing to read: give text, FILE…, or rows on standard input")
        faults = [fault for name in self.inputs if (fault := fault_of_name(name))]
        raise_all(faults)

    @property
    def is_live(self) -> bool:
        """Whether rows may come slowly, so that waiting for more would keep answers back."""
        return STDIN in self.inputs

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all files; None when standard input is among the inputs."""
        return None if self.is_live else sum(os.path.getsize(name) for name in self.inputs if os.path.exists(name))

    def untimed_fields(self) -> Iterator[str]:
        """A warning for each field that seems to hold the times of rows without an `at`; each is told once.

        Rows may be read in another thread meanwhile.
        """
        while self._untimed:
            item = self._untimed.popleft()
            yield (
                f"{item.place}: no `at`, so that it counts as said now, and so do all like it; "
                f"--at-field {item.time_field} reads `{item.time_field}`"
            )

    def rows(self) -> Iterator[Row | Unreadable]:
        """Every row. Of rows with one id, the second and later get `~2`, `~3` and so on after it."""
        n_seen: Counter[str] = Counter()
        for row in self._rows():
            if isinstance(row, Row):
                own = name = row.id
                while n_seen[name]:
                    n_seen[own] += 1
                    name = f"{own}~{n_seen[own]}"
                n_seen[name] += 1
                row = row if name == own else Row(row.place, row.exchange.model_copy(update={"id": name}))
            yield row

    def _rows(self) -> Iterator[Row | Unreadable]:
        for name in self.inputs:
            if name != STDIN and not os.path.exists(name):
                text, now = os.fsencode(name).decode("utf-8", "replace"), datetime.now(UTC).isoformat()
                fields = {"user_message": text, "assistant_message": "", "id": f"text@{now}"}
                yield self._row(checked(Item("text", fields), self.reading))
                continue
            with self._stream(name) as stream:
                before = self.n_bytes
                for item in iter_inputs(stream, name, self.unused_fields, self.reading):
                    self.n_bytes = before + (stream.tell() if stream.seekable() else 0)
                    yield self._row(item)

    def _row(self, item: Item | Unreadable) -> Row | Unreadable:
        if isinstance(item, Unreadable):
            return item
        fields: dict[str, Any] = {name: item.fields[name] for name in item.fields if name in Exchange.model_fields}
        try:
            exchange = Exchange.model_validate(fields | {"at": item.at, "id": _id_of(item)})
        except ValidationError as error:
            reason = "; ".join(describe_fault(fault) for fault in error.errors())
            return Unreadable(item.place, reason, fields["user_message"])
        if exchange.at or self.at:
            return Row(item.place, exchange if exchange.at else exchange.model_copy(update={"at": self.at}))
        if item.time_field and item.time_field not in self._told:
            self._told.add(item.time_field)
            self._untimed.append(item)
        return Row(item.place, exchange)

    @contextlib.contextmanager
    def _stream(self, name: str) -> Iterator[BinaryIO]:
        if name == STDIN:  # by a reader of its own: Python aborts at its end if a thread waits in sys.stdin's
            with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
                yield stream
            return
        try:
            with open(name, "rb") as stream:
                yield stream
        except OSError as error:
            raise ObserverError(explain_os_error(error, Path(name))) from error


def _id_of(item: Item) -> str:
    """The row's own id. A row without one was given its file and line, to which we add a hash of its text."""
    own, line = item.fields["id"], Path(item.place.partition(" turn ")[0]).name
    if own != line and not own.startswith(f"{line}#"):
        return own
    return f"{own}@{hashlib.sha256(item.exchange.encode()).hexdigest()[:8]}"


def fault_of_name(name: str) -> str:
    """What is wrong with what was given as a file, text or standard input; nothing where it can be read."""
    if name == STDIN:
        return ""
    if os.path.isdir(name):
        return f"{name}: a folder; name the files in it"
    is_word = not any(character.isspace() for character in name)
    if is_word and Path(name).suffix.lower() in FILE_SUFFIXES and not os.path.exists(name):
        return f"{name}: no such file; check the path, relative to the folder you run from"
    return "" if name.strip() else "an empty text; give a message, FILE… or - for standard input"
