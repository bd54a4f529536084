"""A memory in one SQLite file: observations, and the facts and operations that follow from them in order of time.

Each observation counts once. Facts are ended; deleted only by `forget`, when that is asked for.
One file remembers for one user.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel

from observer.errors import ObserverError
from observer.files import explain_os_error
from observer.memory.diff import Timeline, changes
from observer.memory.facts import End, Fact, Operation, OperationKind, Reason, in_order, in_utc
from observer.memory.rules import topic_of
from observer.memory.said import ENDS, Said
from observer.memory.schema import APPLICATION_ID, SCHEMA_VERSION, add_tables, pragma, version_of
from observer.memory.version_1 import ends_by_source
from observer.observation import Observation, id_of_another

T = TypeVar("T")
BUSY_TIMEOUT_S = 30.0
PAGE_BYTES = 1 << 16
"""What SQLite may ask of the disk at once: its index of the log grows by half of it."""

_FACT_COLUMNS = tuple(Fact.model_fields)
_OF_TOPICS = "topic IN (SELECT value FROM json_each(?))"
"""One JSON list for any number of topics: SQLite bounds the number of question marks."""


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
        with self._faults_explained():
            if must_exist and not path.exists():
                raise ObserverError(f"{path}: no such memory; `observer observe … --memory {path}` makes one")
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

        `source` is the id of the exchange; one that stood for another text gets a hash after it. `seen_at` is when it
        was said: by default the observation's own time, else now. One that is older than what is known of the same
        counts from when it was said: what follows from all of it is derived anew. It is on the disk when this returns.
        """
        with self._transaction():
            said = Said.of(observation, seen_at, self._own_source(observation, source))
            return self._take_in([said]) if self._insert(said) else []

    def apply_all(self, observations: Iterable[Observation]) -> list[Operation]:
        """As `apply` of each under its own id, all of them or none. What follows is derived once: some dozens at a
        time are much quicker than one, above all where the newest comes first."""
        with self._transaction():
            new: list[Said] = []
            for observation in observations:
                said = Said.of(observation, source=self._own_source(observation, str(observation.id)))
                if self._insert(said):
                    new.append(said)
            return self._take_in(new) if new else []

    def forget(self, fact_id: str, *, delete: bool = False) -> Fact:
        """End a fact because somebody asks for it, and return it as it is left; one that is over stays as it is.

        With `delete` all that tells of its triple goes: other times of it, their history, and the statements in the
        observations. These stay known by their ids: to read them again brings nothing back. Raises ObserverError for
        an id that is no fact's.
        """
        with self._transaction():
            found = self._facts(["id = ?"], [fact_id])
            if not found:
                fix = f"`observer memory show {self.path} --all --json` has them all"
                raise ObserverError(f"{self.path}: no fact has the id {fact_id!r}; {fix}")
            (fact,) = found
            if delete:
                self._delete(fact)
            elif fact.is_current:
                end = End(key=fact.key, temporal=fact.temporal, reason=Reason.FORGOTTEN)
                now = max(datetime.now(UTC), fact.told_at)
                said = Said(Observation(model="forget"), now, f"forgotten-{uuid.uuid4()}", (end,))
                self._insert(said)
                self._take_in([said])
                (fact,) = self._facts(["id = ?"], [fact_id])
        if delete:  # out of the copies too that moving records left, and out of the log that others have read
            with self._faults_explained():
                self._database.execute("VACUUM")
                (is_read, *_) = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if is_read:
                told = f"deleted, but {self.path}-wal keeps it while another program reads; end that program"
                raise ObserverError(f"{self.path}: {told}")
        return fact

    def _delete(self, fact: Fact) -> None:
        topic = topic_of(fact.key)
        self._database.execute("DELETE FROM topics WHERE topic = ?", [topic])
        timeline = Timeline()
        for said in self.told():
            operations = timeline.tell(said.about({topic}))
            left = said.without(fact.key, operations)
            if left != said:
                row = (_json(left.observation), _json_of_ends(left), left.source)
                self._database.execute("UPDATE sources SET observation = ?, ends = ? WHERE id = ?", row)
            if topic in left.topics:
                self._database.execute("INSERT INTO topics VALUES (?, ?)", (topic, left.source))
        self._derive([topic])

    def known(self, subject: str | None = None, *, is_current: bool = True) -> list[Fact]:
        """Facts, of one name (as subject or object) or all; with `is_current` False the ended ones as well."""
        conditions, values = _about(subject)
        if is_current:
            conditions.append("ended_at IS NULL")
        return self._facts(conditions, values)

    def history(self, name: str | None = None) -> list[Event]:
        """Every ADD and INVALIDATE in the order in which it was said, of facts with this name or of all."""
        conditions, values = _about(name)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        query = (
            "SELECT o.kind, o.reason, o.fact, o.source, o.seen_at FROM operations o JOIN facts ON facts.id = o.fact_id "
            f"JOIN sources ON sources.id = o.source{where} ORDER BY o.seen_at, sources.rowid, o.number"
        )
        with self._faults_explained():
            rows = self._database.execute(query, values).fetchall()
        return list(self._parsed(_event, rows))

    def has(self, source: str) -> bool:
        with self._faults_explained():
            return self._database.execute("SELECT 1 FROM sources WHERE id = ?", (source,)).fetchone() is not None

    def told(self, before: datetime | None = None, topics: Collection[str] | None = None) -> Iterator[Said]:
        """What was applied, in the order in which it was said: all, or what was said `before` a moment, or what tells
        of one of these topics."""
        conditions, values = ["TRUE"], []
        if before:
            conditions, values = ["seen_at < ?"], [in_utc(before).isoformat()]
        if topics is not None:
            conditions.append(f"id IN (SELECT source FROM topics WHERE {_OF_TOPICS})")
            values.append(json.dumps([*topics]))
        query = f"SELECT * FROM sources WHERE {' AND '.join(conditions)} ORDER BY seen_at, rowid"
        with self._faults_explained():
            rows = self._database.execute(query, values).fetchall()
        return self._parsed(_said, rows)

    def sources_of(self) -> dict[str, list[str]]:
        """fact id -> the sources that added or ended it."""
        found: dict[str, list[str]] = {}
        with self._faults_explained():
            for row in self._database.execute("SELECT fact_id, source FROM operations ORDER BY seen_at, number"):
                found.setdefault(row["fact_id"], []).append(row["source"])
        return found

    def attributes(self) -> dict[str, dict[str, str]]:
        """Case-folded name -> what the observations told of it beside the facts; of each key the last."""
        found: dict[str, dict[str, str]] = {}
        for said in self.told():
            for entity in said.observation.entities:
                found.setdefault(entity.name.casefold(), {}).update(entity.attributes)
        return found

    def _prepare(self) -> None:
        self._database.execute("PRAGMA secure_delete = ON")  # what is deleted leaves no bytes behind
        head = pragma(self._database, "application_id"), pragma(self._database, "user_version")
        if head == (APPLICATION_ID, SCHEMA_VERSION):
            version_of(self._database, self.path)  # reading waits for nobody
        else:
            with self._transaction():  # two programs may come to the same file at once
                self._upgrade(version_of(self._database, self.path))
        self._database.execute("PRAGMA journal_mode = WAL")

    def _upgrade(self, version: int) -> None:
        """From that version to ours: the observations stay as they are, the rest is derived from them anew."""
        if version == SCHEMA_VERSION:
            return
        add_tables(self._database, version)
        if version == 1:
            query = "SELECT o.kind, o.reason, o.fact, o.source, o.seen_at FROM operations o WHERE reason = 'forgotten'"
            events = self._parsed(_event, self._database.execute(query).fetchall())
            forgotten = [(event.source, event.operation.fact) for event in events]
            for source, ends in ends_by_source(forgotten, self.known(is_current=False), self.told()).items():
                row = (ENDS.dump_json(tuple(ends)).decode(), source)
                self._database.execute("UPDATE sources SET ends = ? WHERE id = ?", row)
        self._database.execute("DELETE FROM operations")
        self._database.execute("DELETE FROM facts")
        for said in self.told():
            self._index(said)
        for (topic,) in self._database.execute("SELECT DISTINCT topic FROM topics").fetchall():
            self._derive([topic])

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
            what = str(error).partition(" with text ")[0]  # which somebody said
            raise ObserverError(f"{self.path}: {what}; check the file, its folder and the space left") from error
        except sqlite3.DatabaseError as error:
            raise ObserverError(f"{self.path}: no memory ({error}); name another file") from error
        except UnicodeError as error:  # of what was asked, or of what SQLite quotes of the file
            raise ObserverError(f"{self.path}: no text ({error}); check what was asked, and the file") from error
        except OSError as error:
            raise ObserverError(explain_os_error(error, self.path)) from error

    def _own_source(self, observation: Observation, source: str) -> str:
        """The source, or another name where an exchange of another text came under it before."""
        row = self._database.execute("SELECT observation FROM sources WHERE id = ?", (source,)).fetchone()
        if row is None or observation.text_hash is None:
            return source
        (known,) = self._parsed(lambda row: Observation.model_validate_json(row["observation"]).text_hash, [row])
        return source if known in (None, observation.text_hash) else id_of_another(source, observation.text_hash)

    def _insert(self, said: Said) -> bool:
        row = (said.source, said.seen_at.isoformat(), datetime.now(UTC).isoformat(), _json(said.observation))
        query = "INSERT OR IGNORE INTO sources VALUES (?, ?, ?, ?, ?)"
        return self._database.execute(query, (*row, _json_of_ends(said))).rowcount == 1

    def _take_in(self, new: Sequence[Said]) -> list[Operation]:
        topics = sorted({topic for said in new for topic in said.topics})
        known = self._facts([_OF_TOPICS], [json.dumps(topics)])
        is_late = self._was_more_told_since(min(said.seen_at for said in new), topics)
        for said in new:
            self._index(said)
        if is_late:
            return changes(known, self._derive(topics))
        operations: list[Operation] = []
        timeline = Timeline(known)
        for said in sorted(new, key=lambda said: said.seen_at):
            told = timeline.tell(said)
            self._record(said, told)
            operations += told
        self._upsert(operation.fact for operation in operations if operation.is_stored)
        return operations

    def _index(self, said: Said) -> None:
        """Its topics, by which it is found again."""
        rows = [(topic, said.source) for topic in sorted(said.topics)]
        self._database.executemany("INSERT INTO topics VALUES (?, ?)", rows)

    def _was_more_told_since(self, moment: datetime, topics: Collection[str]) -> bool:
        """Of any of these topics. Their facts do not show all: what ended before leaves no trace of its later end."""
        query = f"SELECT 1 FROM topics JOIN sources ON id = source WHERE {_OF_TOPICS} AND seen_at > ?"
        return self._database.execute(query, [json.dumps([*topics]), moment.isoformat()]).fetchone() is not None

    def _derive(self, topics: Collection[str]) -> list[Fact]:
        """Facts and operations of these topics anew, from all that was told of them."""
        of_these = [json.dumps([*topics])]
        query = f"DELETE FROM operations WHERE fact_id IN (SELECT id FROM facts WHERE {_OF_TOPICS})"
        self._database.execute(query, of_these)
        self._database.execute(f"DELETE FROM facts WHERE {_OF_TOPICS}", of_these)
        timeline = Timeline()
        for said in self.told(topics=topics):
            self._record(said, timeline.tell(said.about(topics)))
        self._upsert(timeline.facts)
        return timeline.facts

    def _facts(self, conditions: Sequence[str], values: Sequence[Any]) -> list[Fact]:
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        columns = ", ".join(f'"{name}"' for name in _FACT_COLUMNS)
        with self._faults_explained():
            rows = self._database.execute(f"SELECT {columns} FROM facts{where}", values).fetchall()
        return in_order(self._parsed(lambda row: Fact.model_validate(dict(row)), rows))

    def _parsed(self, parse: Callable[[sqlite3.Row], T], rows: Iterable[sqlite3.Row]) -> Iterator[T]:
        try:
            yield from map(parse, rows)
        except (ValueError, TypeError) as error:
            what = str(error).partition("\n")[0]
            raise ObserverError(f"{self.path}: holds what is none of ours ({what}); take a copy of before") from error

    def _upsert(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            subject, _, obj = fact.key
            keys = {"subject_key": subject, "object_key": obj, "topic": topic_of(fact.key)}
            values = fact.model_dump(mode="json") | keys
            columns = ", ".join(f'"{name}"' for name in values)
            query = f"INSERT OR REPLACE INTO facts ({columns}) VALUES ({_marks(values)})"
            self._database.execute(query, [*values.values()])

    def _record(self, said: Said, operations: Iterable[Operation]) -> None:
        for operation in operations:
            if operation.kind is not OperationKind.NOOP:
                fact = operation.fact
                row = (said.source, said.seen_at.isoformat(), operation.kind, operation.reason, fact.id, _json(fact))
                columns = "source, seen_at, kind, reason, fact_id, fact"
                self._database.execute(f"INSERT INTO operations ({columns}) VALUES ({_marks(row)})", row)


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


def _json(record: BaseModel) -> str:
    return record.model_dump_json(exclude_defaults=True)


def _json_of_ends(said: Said) -> str:
    return ENDS.dump_json(said.ends).decode()


def _said(row: sqlite3.Row) -> Said:
    observation = Observation.model_validate_json(row["observation"])
    return Said(observation, in_utc(datetime.fromisoformat(row["seen_at"])), row["id"], ENDS.validate_json(row["ends"]))


def _event(row: sqlite3.Row) -> Event:
    fact = Fact.model_validate_json(row["fact"])
    operation = Operation(kind=OperationKind(row["kind"]), reason=Reason(row["reason"]), fact=fact)
    return Event(datetime.fromisoformat(row["seen_at"]), row["source"], operation)
