"""Fuzz targets for files that somebody hands over: configs, rows, ledgers, memories, models and their parts."""

from __future__ import annotations

import atexit
import contextlib
import math
import shutil
import sqlite3
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, get_args

from eval.answers.answering import load_answers
from observer.config import DataConfig, UnknownPredicates, load_config
from observer.data.check import check_files
from observer.data.dataset import read_rows
from observer.data.importing import read_raw_rows
from observer.data.own_data import make_own_data
from observer.data.raw_rows import values_of_file
from observer.files import write_jsonl
from observer.labeling import answers_file
from observer.memory.graphiti import to_graphiti
from observer.memory.mem0 import to_mem0
from observer.memory.store import Store
from observer.observation import Asked, Observation
from observer.observe.observations_file import open_ledger
from observer.observe.reading import Reader, Row
from observer.paths import DataPaths
from observer.prompts import row_exchange, training_row
from observer.runs.manifest import Manifest
from observer.schema import parse_row
from tests.trust.fuzz.texts import accepted, check_exchange, parts_of


@cache
def scratch() -> Path:
    """A folder for the files of inputs, for as long as the process runs."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def configs(data: bytes) -> None:
    """A config and an override of it; what is accepted reads back the same."""
    text, override = parts_of(data, 2)
    path, again = scratch() / "config.yaml", scratch() / "again.yaml"
    path.write_bytes(data if not override else text.encode())
    config = accepted(lambda: load_config(path, [override.strip()] if override.strip() else []))
    if config:
        again.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(again) == config
        numbers = [value for part in config.model_dump().values() for value in part.values() if type(value) is float]
        assert all(map(math.isfinite, numbers)), "a number that is none"


def rows(data: bytes) -> None:
    """Raw rows, strictly and with repairs; every line is a row, set aside, or named in the error."""
    path = scratch() / "rows.jsonl"
    path.write_bytes(data)
    lines = accepted(lambda: list(values_of_file(path)))
    if lines is None:
        return
    n_lines = len(lines)
    for choice in get_args(UnknownPredicates):
        imported = accepted(read_raw_rows, [path], choice)
        if imported is None:
            continue
        assert len(imported.rows) + len(imported.quarantined) == n_lines, "lines went missing"
        write_jsonl(scratch() / "quarantine.jsonl", [asdict(bad) for bad in imported.quarantined])
        for placed in imported.rows:
            row = placed.row
            assert parse_row(row.model_dump(mode="json", exclude_unset=True)) == (row, [])
            check_exchange(row_exchange(row), len(row.context) + 1 + bool(row.assistant_message.strip()))
        write_jsonl(scratch() / "train.jsonl", [training_row(placed.row) for placed in imported.rows])
    accepted(lambda: make_own_data([path], DataConfig(unknown_predicates="quarantine"), 0).write(DataPaths(scratch())))
    accepted(check_files, [path])
    accepted(read_rows, path)


def observe_inputs(data: bytes) -> None:
    """A file of rows for `observer observe`; no two rows share an id."""
    path = scratch() / "chats.jsonl"
    path.write_bytes(data)
    ids = accepted(lambda: [row.id for row in Reader([str(path)]).rows() if isinstance(row, Row)])
    if ids is None:
        return
    assert len(ids) == len(set(ids)), "two rows of one id: one of them would count as done"


def observation_ledgers(data: bytes) -> None:
    """The file of `--out`; what is not ours stays as it is, byte by byte."""
    path = scratch() / "observations.jsonl"
    tasks: tuple[Asked, ...] = ("observe", "grade")
    for task in tasks:
        path.write_bytes(data)
        if accepted(_read_ledger, path, task):
            left = path.read_bytes()
            assert data.startswith(left) and b"\n" not in data[len(left) :], "a whole line was dropped"
        else:
            assert path.read_bytes() == data, "a file that was refused has changed"


def label_ledgers(data: bytes) -> None:
    """The record of a labelling run."""
    path = scratch() / "ledger.jsonl"
    path.write_bytes(data)
    read = accepted(answers_file.read_ledger, path)

    def opened() -> tuple[dict[str, Any], float]:
        with answers_file.open_ledger(path) as ledger:
            assert math.isfinite(ledger.cost_usd), "costs that are no number"
            return ledger.answers, ledger.cost_usd

    assert accepted(opened) == read
    for answer in (read[0] if read else {}).values():
        assert isinstance(answer.text, str) and isinstance(answer.refusal, str)


def manifests(data: bytes) -> None:
    """A run's manifest.json."""
    path = scratch() / "manifest.json"
    path.write_bytes(data)
    manifest = accepted(Manifest, path)
    for stage in manifest.stages if manifest else ():
        assert manifest
        manifest.notes(stage).get("x")
        assert not manifest._is_done(stage, "other inputs", [path])
        manifest._is_done(stage, manifest.stages[stage]["inputs"], [path])


def saved_answers(data: bytes) -> None:
    """Answers that an evaluation saved."""
    path = scratch() / "evaluation.answers.jsonl"
    path.write_bytes(data)
    answers = accepted(load_answers, path)
    if answers:
        assert len(answers.grades) == len(answers.grade_rows)
        assert all(isinstance(completion.text, str) for completion in answers.completions)


def memories(data: bytes) -> None:
    """A memory file: SQLite's own bytes, or SQL that makes one."""
    path = scratch() / "memory.sqlite"
    for leftover in scratch().glob("memory.sqlite*"):
        leftover.unlink()
    if data.startswith(b"SQLite"):
        path.write_bytes(data)
    else:
        _make_database(path, data.decode("utf-8", "replace"))
    accepted(_use_memory, path)


def _read_ledger(path: Path, task: Asked) -> bool:
    with open_ledger(path, task) as ledger:
        assert len(list(ledger.observations())) >= len(ledger.done)
    return True


def _use_memory(path: Path) -> None:
    with Store(path) as store:
        facts = store.known(is_current=False)
        store.history()
        to_graphiti(facts, "user", store.sources_of(), store.attributes())
        for fact in facts:
            to_mem0(fact)
            fact.as_text()
        store.has("x")
        store.apply(Observation(model="m", id="x"), "x")


def _make_database(path: Path, script: str) -> None:
    """Run SQL that may do anything but leave the file, for a moment."""
    n_steps = iter(range(200))
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.set_authorizer(lambda action, *_: int(action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)))
        database.set_progress_handler(lambda: next(n_steps, None) is None, 1_000)
        database.execute("PRAGMA synchronous = OFF")
        for statement in script.split(";\n"):
            with contextlib.suppress(sqlite3.Error, sqlite3.Warning, ValueError):
                database.execute(statement)
        with contextlib.suppress(sqlite3.Error):
            database.commit()
