"""Taking turns: a warm child process for each contestant, one at work at a time, every answer on record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks.training.trainers import Entrant, entry_config
from observer.config import Config
from observer.errors import ObserverError
from observer.files import read_jsonl, write_jsonl, write_row, write_text
from observer.paths import python_path

Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What is compared, on what; `folder` keeps the rows, logs and records of this very comparison.

    `n_rows` and `n_tokens` are those of a round: the train rows times the epochs.
    """

    config: Config
    entrants: list[Entrant]
    folder: Path
    n_rounds: int
    warm_up_steps: int
    n_rows: int
    n_tokens: int
    n_val_rows: int
    device: str


class Records:
    """Append-only JSONL of what the children answered; failures of an earlier call are forgotten, and tried again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = [record for _, record in read_jsonl(path)] if path.exists() else []
        self.all: list[Record] = [record for record in known if record["kind"] != "failed"]
        write_jsonl(path, self.all)

    def keep(self, kind: str, entrant: str, **values: Any) -> None:
        record = {"kind": kind, "entrant": entrant} | values
        self.all.append(record)
        with self.path.open("a", encoding="utf-8") as stream:
            write_row(stream, record)

    def has(self, kind: str, entrant: str, **values: Any) -> bool:
        wanted = {"kind": kind, "entrant": entrant} | values
        return any(wanted.items() <= record.items() for record in self.all)


class Child:
    """A running contestant; `ask` waits for its answer. Raises ObserverError with its last words when it dies."""

    def __init__(self, bench: Bench, entrant: Entrant) -> None:
        config = bench.folder / f"{entrant.label}.yaml"
        write_text(config, entry_config(bench.config, entrant, bench.folder).to_yaml())
        self.log = bench.folder / f"{entrant.label}.log"
        command = [sys.executable, "-m", "eval.benchmarks.training.child"]
        command += [str(config), entrant.kind, str(bench.warm_up_steps)]
        environment = os.environ | {"PYTHONPATH": python_path()}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
            )

    def ask(self, command: str) -> Record:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            raise ObserverError(f"{_last_line(self.log) or f'ended with exit code {code}'} [{self.log}]")
        return json.loads(answer)

    def close(self) -> None:
        """End its input, at which it leaves; kill it where it does not."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def run_rounds(bench: Bench) -> list[Record]:
    """Take turns until every contestant has its rounds, and return all records.

    What is on record is not done again; a contestant that fails is on record as such, and the others go on.
    """
    records = Records(bench.folder / "records.jsonl")
    children: dict[str, Child] = {}
    turns = [(number, entrant) for number in range(1, bench.n_rounds + 1) for entrant in bench.entrants]
    try:
        for number, entrant in turns:
            label = entrant.label
            if records.has("round", label, round=number) or records.has("failed", label):
                continue
            try:
                _take_turn(bench, entrant, number, children, records)
            except ObserverError as error:
                records.keep("failed", label, error=str(error))
                _say(f"{label}: {error}")
    finally:
        for child in children.values():
            child.close()
    return records.all


def _take_turn(bench: Bench, entrant: Entrant, number: int, children: dict[str, Child], records: Records) -> None:
    label = entrant.label
    if label not in children:
        _say(f"{label}: starting")
        children[label] = Child(bench, entrant)
        start = children[label].ask("start")
        if not records.has("start", label):
            records.keep("start", label, **start)
    child = children[label]
    taken = child.ask("round")
    records.keep("round", label, round=number, **taken)
    speed = bench.n_tokens / taken["seconds"]
    _say(f"round {number}/{bench.n_rounds}  {label:<18} {taken['seconds']:8.2f} s  {speed:10,.0f} real tokens/s")
    if not records.has("nll", label):
        records.keep("nll", label, **child.ask("nll"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _last_line(log: Path) -> str:
    lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
