"""A memory in one SQLite file: facts, every operation on them, and the observations they came from.

Each observation is one transaction and counts once. Facts are ended; deleted only by `forget`, when that is asked for.
One file remembers for one user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from observer.errors import ObserverError
from observer.files import explain_os_error
from observer.memory.diff import diff, names_and_predicates
from observer.memory.facts import Fact, Operation, OperationKind, Reason, in_utc, without
from observer.observation import Observation, id_of_another

T = TypeVar("T")
SCHEMA_VERSION = 1
APPLICATION_ID = 0x6F627376  # "obsv", in the file's header: no other program's file is taken for a memory
BUSY_TIMEOUT_S = 30.0
PAGE_BYTES = 1 << 16
"""What SQLite may ask of the disk at once: its index of the log grows by half of it."""

SCHEMA = """
CREATE TABLE sources (
    id TEXT PRIMARY KEY, seen_at TEXT NOT NULL, applied_at TEXT NOT NULL, observation TEXT NOT NULL
);
CREATE TABLE facts (
    id TEXT PRIMARY KEY, subject_key TEXT NOT NULL, object_key TEXT NOT NULL,
    subject TEXT NOT NULL, predicate TEXT NOT NULL, object TEXT NOT NULL, subject_type TEXT, object_type TEXT,
    temporal TEXT NOT NULL, "when" TEXT, valid_at TEXT, invalid_at TEXT, first_seen TEXT NOT NULL,
    last_seen TEXT NOT NULL, ended_at TEXT, ended_by TEXT, stated_by TEXT, confidence REAL
);
CREATE INDEX facts_of_subject ON facts (subject_key, predicate);
CREATE INDEX facts_of_object ON facts (object_key, predicate);
CREATE TABLE operations (
    number INTEGER PRIMARY KEY, source TEXT NOT NULL REFERENCES sources, seen_at TEXT NOT NULL,
    kind TEXT NOT NULL, reason TEXT NOT NULL, fact_id TEXT NOT NULL, fact TEXT NOT NULL
);
CREATE INDEX operations_of_fact ON operations (fact_id);
"""
_FACT_COLUMNS = tuple(Fact.model_fields)


class Event(NamedTuple):
    """One operation of the past: when it was said, where, and what it did. `fact` is as it was left then."""

    seen_at: datetime
    source: str
    operation: Operation


class Store:
    """One connection, which threads may share. Raises ObserverError for a file that is no memory, is of another
    version, or stays locked by another program."""

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        if must_exist and not path.exists():
            raise ObserverError(f"{path}: no such memory; `observer observe … --memory {path}` makes one")
        with self._faults_explained():
            _create_private(path)
            self._database = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._database.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def apply(self, observation: Observation, source: str, seen_at: datetime | None = None) -> list[Operation]:
        """Take in what an observation says, and return what that changed; nothing when `source` was applied before.

        `source` is the id of the exchange; one that stood for another text gets a hash after it. `seen_at` is as `diff`
        has it. It is on the disk when this returns.
        """
        seen_at = in_utc(seen_at or observation.at or datetime.now(UTC))
        with self._transaction():
            source = self._own_source(observation, source)
            if not self._insert_source(observation, source, seen_at):
                return []
            operations = diff(observation, self._concerned(observation), seen_at)
            for operation in operations:
                if operation.is_stored:
                    self._upsert(operation.fact)
                if operation.kind is not OperationKind.NOOP:
                    self._record(operation, source, seen_at)
        return operations

    def forget(self, fact_id: str, *, delete: bool = False) -> Fact:
        """End a fact because somebody asks for it, and return it as it is left; one that is over stays as it is.

        With `delete` all that tells of its triple goes: other times of it, their history, and the statements in the
        observations. These stay known by their ids: to read them again brings nothing back. Raises ObserverError for
        an id that is no fact's.
        """
        with self._transaction():
            found = self._facts(["id = ?"], [fact_id])
            if not found:
                raise ObserverError(f"{self.path}: no fact has the id {fact_id!r}; `observer memory show` has them all")
            (fact,) = found
            if delete:
                self._delete(fact)
            elif fact.is_current:
                now = max(datetime.now(UTC), fact.last_seen)
                fact = fact.model_copy(update={"ended_at": now, "ended_by": Reason.FORGOTTEN})
                source = f"forgotten-{uuid.uuid4()}"
                self._insert_source(Observation(model="forget"), source, now)
                self._upsert(fact)
                self._record(Operation(kind=OperationKind.INVALIDATE, reason=Reason.FORGOTTEN, fact=fact), source, now)
        if delete:  # out of the log too, where others have read what was there before
            with self._faults_explained():
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return fact

    def _delete(self, fact: Fact) -> None:
        of_triple = "SELECT id FROM facts WHERE (subject_key, predicate, object_key) = (?, ?, ?)"
        self._database.execute(f"DELETE FROM operations WHERE fact_id IN ({of_triple})", fact.key)
        self._database.execute(f"DELETE FROM facts WHERE id IN ({of_triple})", fact.key)
        for source, observation, _ in self.observations():
            if (left := without(observation, fact.key)) != observation:
                text = left.model_dump_json(exclude_defaults=True)
                self._database.execute("UPDATE sources SET observation = ? WHERE id = ?", (text, source))

    def known(self, subject: str | None = None, *, is_current: bool = True) -> list[Fact]:
        """Facts, of one name (as subject or object) or all; with `is_current` False the ended ones as well."""
        conditions, values = _about(subject)
        if is_current:
            conditions.append("ended_at IS NULL")
        return self._facts(conditions, values)

    def history(self, name: str | None = None) -> list[Event]:
        """Every ADD and INVALIDATE in the order in which they were made, of facts with this name or of all."""
        conditions, values = _about(name)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        query = (
            "SELECT o.kind, o.reason, o.fact, o.source, o.seen_at FROM operations o JOIN facts ON facts.id = o.fact_id"
            f"{where} ORDER BY o.number"
        )
        with self._faults_explained():
            rows = self._database.execute(query, values).fetchall()
        return self._parsed(_event, rows)

    def has(self, source: str) -> bool:
        with self._faults_explained():
            return self._database.execute("SELECT 1 FROM sources WHERE id = ?", (source,)).fetchone() is not None

    def observations(self, before: datetime | None = None) -> list[tuple[str, Observation, datetime]]:
        """Sources, what was applied and when it was said, in that order; all, or what was said `before` a moment."""
        query, values = "SELECT id, observation, seen_at FROM sources", []
        if before:
            query, values = f"{query} WHERE seen_at < ?", [in_utc(before).isoformat()]
        with self._faults_explained():
            rows = self._database.execute(f"{query} ORDER BY seen_at, rowid", values).fetchall()
        return self._parsed(_source, rows)

    def sources_of(self) -> dict[str, list[str]]:
        """fact id -> the sources that added or ended it."""
        found: dict[str, list[str]] = {}
        with self._faults_explained():
            for row in self._database.execute("SELECT fact_id, source FROM operations ORDER BY number"):
                found.setdefault(row["fact_id"], []).append(row["source"])
        return found

    def attributes(self) -> dict[str, dict[str, str]]:
        """Case-folded name -> what the observations told of it beside the facts; of each key the last."""
        found: dict[str, dict[str, str]] = {}
        for _, observation, _ in self.observations():
            for entity in observation.entities:
                found.setdefault(entity.name.casefold(), {}).update(entity.attributes)
        return found

    def _prepare(self) -> None:
        self._database.execute("PRAGMA secure_delete = ON")  # what is deleted leaves no bytes behind
        application_id, version = self._pragma("application_id"), self._pragma("user_version")
        if application_id == APPLICATION_ID:
            if version != SCHEMA_VERSION:
                raise ObserverError(
                    f"{self.path}: a memory of version {version}, this program reads version {SCHEMA_VERSION}; "
                    "use the version of observer that wrote it, or name another file"
                )
            if (shape := _shape_of(self._database)) != shape_of_a_memory():
                odd = ", ".join(sorted(shape ^ shape_of_a_memory()))[:200]
                raise ObserverError(f"{self.path}: no memory: unlike ours in {odd}; name another file")
            return
        with self._transaction():  # two programs may come to a new file at once
            if self._pragma("application_id") == APPLICATION_ID:
                return
            if self._database.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise ObserverError(f"{self.path}: a database of another program; name another file")
            for statement in SCHEMA.split(";"):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._database.execute("PRAGMA journal_mode = WAL")

    def _pragma(self, name: str) -> int:
        return self._database.execute(f"PRAGMA {name}").fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write alone: what is read inside is what the writing is based on."""
        with self._faults_explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._database.in_transaction:  # SQLite has ended it itself where the disk is full
                    self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _faults_explained(self) -> Iterator[None]:
        """One thread at a time, and what goes wrong in one line."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                fix = f"another program has been writing to it for {BUSY_TIMEOUT_S:.0f} s; run the same again"
                raise ObserverError(f"{self.path}: {fix}") from error
            if shutil.disk_usage(self.path.parent).free < PAGE_BYTES:  # also told as "disk I/O error"
                raise ObserverError(explain_os_error(OSError(errno.ENOSPC, ""), self.path)) from error
            raise ObserverError(f"{self.path}: {error}; check the file, its folder and the space left") from error
        except sqlite3.DatabaseError as error:
            raise ObserverError(f"{self.path}: no memory ({error}); name another file") from error
        except OSError as error:
            raise ObserverError(explain_os_error(error, self.path)) from error

    def _own_source(self, observation: Observation, source: str) -> str:
        """The source, or another name where an exchange of another text came under it before."""
        row = self._database.execute("SELECT observation FROM sources WHERE id = ?", (source,)).fetchone()
        if row is None or observation.text_hash is None:
            return source
        (known,) = self._parsed(lambda row: Observation.model_validate_json(row["observation"]).text_hash, [row])
        return source if known in (None, observation.text_hash) else id_of_another(source, observation.text_hash)

    def _insert_source(self, observation: Observation, source: str, seen_at: datetime) -> bool:
        text = observation.model_dump_json(exclude_defaults=True)
        row = (source, seen_at.isoformat(), datetime.now(UTC).isoformat(), text)
        return self._database.execute("INSERT OR IGNORE INTO sources VALUES (?, ?, ?, ?)", row).rowcount == 1

    def _concerned(self, observation: Observation) -> list[Fact]:
        """All known facts that one of the observation could be the same as, or could end."""
        names, predicates = names_and_predicates(observation)
        of_names = f"IN ({_marks(names)})"
        conditions = [f"(subject_key {of_names} OR object_key {of_names})", f"predicate IN ({_marks(predicates)})"]
        return self._facts(conditions, [*names, *names, *predicates])

    def _facts(self, conditions: Sequence[str], values: Sequence[Any]) -> list[Fact]:
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        columns = ", ".join(f'"{name}"' for name in _FACT_COLUMNS)
        with self._faults_explained():
            rows = self._database.execute(
                f"SELECT {columns} FROM facts{where} ORDER BY first_seen, id", values
            ).fetchall()
        return self._parsed(lambda row: Fact.model_validate(dict(row)), rows)

    def _parsed(self, parse: Callable[[sqlite3.Row], T], rows: Iterable[sqlite3.Row]) -> list[T]:
        try:
            return [parse(row) for row in rows]
        except (ValueError, TypeError) as error:
            what = str(error).partition("\n")[0]
            raise ObserverError(f"{self.path}: holds what is none of ours ({what}); take a copy of before") from error

    def _upsert(self, fact: Fact) -> None:
        subject, _, obj = fact.key
        values = fact.model_dump(mode="json") | {"subject_key": subject, "object_key": obj}
        columns = ", ".join(f'"{name}"' for name in values)
        query = f"INSERT OR REPLACE INTO facts ({columns}) VALUES ({_marks(values)})"
        self._database.execute(query, [*values.values()])

    def _record(self, operation: Operation, source: str, seen_at: datetime) -> None:
        fact = operation.fact
        row = (source, seen_at.isoformat(), operation.kind, operation.reason, fact.id, fact.model_dump_json())
        columns = "source, seen_at, kind, reason, fact_id, fact"
        self._database.execute(f"INSERT INTO operations ({columns}) VALUES ({_marks(row)})", row)


@cache
def shape_of_a_memory() -> set[str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(SCHEMA)
        return _shape_of(database)


def _shape_of(database: sqlite3.Connection) -> set[str]:
    """Kind, name and words of every table, index, view and trigger: a view could ask for anything, and for ever."""
    rows = database.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    return {" ".join(" ".join(map(str, row)).split()) for row in rows}


def _create_private(path: Path) -> None:
    """A new file is for its owner alone: it tells what people said. SQLite gives its side files the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _about(name: str | None) -> tuple[list[str], list[Any]]:
    if name is None:
        return [], []
    return ["(facts.subject_key = ? OR facts.object_key = ?)"], [name.casefold()] * 2


def _marks(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values)


def _source(row: sqlite3.Row) -> tuple[str, Observation, datetime]:
    observation = Observation.model_validate_json(row["observation"])
    return row["id"], observation, datetime.fromisoformat(row["seen_at"])


def _event(row: sqlite3.Row) -> Event:
    fact = Fact.model_validate_json(row["fact"])
    operation = Operation(kind=OperationKind(row["kind"]), reason=Reason(row["reason"]), fact=fact)
    return Event(datetime.fromisoformat(row["seen_at"]), row["source"], operation)
