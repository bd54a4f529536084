"""The tables of a memory's file, and its version."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import cache
from pathlib import Path

from observer.errors import ObserverError

APPLICATION_ID = 0x6F627376  # "obsv", in the file's header: no other program's file is taken for a memory

SCHEMAS = (
    """
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
""",
    """
ALTER TABLE sources ADD COLUMN ends TEXT NOT NULL DEFAULT '[]';
ALTER TABLE facts ADD COLUMN topic TEXT NOT NULL DEFAULT '';
CREATE INDEX facts_of_topic ON facts (topic);
CREATE TABLE topics (
    topic TEXT NOT NULL, source TEXT NOT NULL REFERENCES sources, PRIMARY KEY (topic, source)
) WITHOUT ROWID;
""",
)
"""What each version adds to the one before. `sources` is what was told; all else follows from it, topic by topic."""
SCHEMA_VERSION = len(SCHEMAS)


def version_of(database: sqlite3.Connection, path: Path) -> int:
    """0 of an empty file. Raises ObserverError for a file that is none of ours, or of a later version."""
    if pragma(database, "application_id") != APPLICATION_ID:
        if database.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise ObserverError(f"{path}: a database of another program; name another file")
        return 0
    version = pragma(database, "user_version")
    if not 0 < version <= SCHEMA_VERSION:
        raise ObserverError(
            f"{path}: a memory of version {version}, this program reads version {SCHEMA_VERSION}; "
            "use the version of observer that wrote it, or name another file"
        )
    if (shape := _shape_of(database)) != _shape_of_a_memory(version):
        odd = ", ".join(sorted(shape ^ _shape_of_a_memory(version)))[:200]
        raise ObserverError(f"{path}: no memory: unlike ours in {odd}; name another file")
    return version


def add_tables(database: sqlite3.Connection, since: int, until: int = SCHEMA_VERSION) -> None:
    """Make a memory of version `since` one of version `until`."""
    for statement in "".join(SCHEMAS[since:until]).split(";"):
        database.execute(statement)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {until}")


def pragma(database: sqlite3.Connection, name: str) -> int:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


@cache
def _shape_of_a_memory(version: int) -> set[str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        add_tables(database, 0, version)
        return _shape_of(database)


def _shape_of(database: sqlite3.Connection) -> set[str]:
    """Kind, name and words of every table, index, view and trigger: a view could ask for anything, and for ever."""
    rows = database.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    return {" ".join(" ".join(map(str, row)).split()) for row in rows}
