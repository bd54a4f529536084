"""`--ray`: a corpus observed by many models at once, on Ray Data, into a folder of parts from which a run is resumed.

The corpus is read twice: first here, to count it, to tell of bad rows and to see what is done; then as a stream that
feeds the workers. Answers come back to this process, which alone writes, so that the machines need no folder in common.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from observer.console.progress import Progress
from observer.console.stopping import check_asked
from observer.errors import ObserverError, raise_all
from observer.files import write_json
from observer.observation import Asked
from observer.observe.bulk.cluster import check_installed, open_cluster
from observer.observe.bulk.dataset import Question, answers
from observer.observe.bulk.parts import MAX_PARTS, Done, PartsFolder, good_rows, parts_of
from observer.observe.bulk.worker import identify
from observer.observe.reading import STDIN, BadRow, Reader
from observer.observe.run import VERBS, remark_counts
from observer.runs.lock import held_folder
from observer.runs.manifest import environment
from observer.turns.inputs import Reading
from observer.turns.row_fields import unused_fields

ROWS_PER_PART = 512


@dataclass(frozen=True)
class BulkOptions:
    """`spec` is the model; None is the default of `open_cluster`, `n_workers` models of `n_threads` each."""

    task: Asked
    inputs: tuple[str, ...]
    out: Path
    spec: str
    reading: Reading = field(default_factory=Reading)
    at: datetime | None = None
    rows_per_part: int = ROWS_PER_PART
    n_workers: int | None = None
    n_threads: int | None = None
    timeout_s: float | None = None
    address: str | None = None

    def open_reader(self) -> Reader:
        faults = [
            f"{name}: --ray reads files, since it reads them twice; {fix}"
            for name in self.inputs or (STDIN,)
            if (fix := _fix(name))
        ]
        raise_all(faults)
        return Reader(list(self.inputs), self.reading, self.at)


@dataclass
class BulkRun:
    """A run, and what it counts: `n_had` rows were there before, `n_bad` have no observation or one with a fault."""

    options: BulkOptions
    n_done: int = 0
    n_had: int = 0
    n_bad: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    rows_per_s: float = 0.0
    unused_fields: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Raises ObserverError for what fails every row alike; parts that are written until then stay."""
        options = self.options
        check_installed()
        reader = options.open_reader()
        identity = identify(options.spec)
        with held_folder(options.out, "name another with --out"):
            folder = PartsFolder(options.out)
            hashes, n_rows = self._plan(reader)
            done = folder.finished(hashes, options.task, identity, options.spec)
            for number in sorted(done):
                self.n_had += folder.done[number].rows
                self._tell_of(folder.done[number], None)
            manifest, path = self._manifest(identity, n_rows, len(hashes)), options.out / "manifest.json"
            if len(done) == len(hashes) and _is_whole(path):
                return
            write_json(path, manifest | {"is_whole": False}, is_private=True)
            start = time.monotonic()
            if len(done) < len(hashes):
                self._answer(folder, identity, hashes, done, n_rows)
            end = {"is_whole": True, "seconds": round(time.monotonic() - start, 1), "rows_done": self.n_done}
            write_json(path, manifest | end, is_private=True)

    def summary(self) -> str:
        """What was done, in one line."""
        parts = [f"{self.n_done:,} {VERBS[self.options.task]}"]
        if self.n_done > 1:
            parts[0] += f" ({self.rows_per_s:.1f} a second)"
        if self.n_had:
            parts.append(f"{self.n_had:,} were in {self.options.out} before")
        if self.n_bad:
            parts.append(f"{self.n_bad:,} with a fault")
        parts += remark_counts(self.remarks)
        return "; ".join(filter(None, [*parts, unused_fields(self.unused_fields)]))

    def _plan(self, reader: Reader) -> tuple[list[str], int]:
        """The hash of every part, and the number of rows; bad rows are told."""
        hashes, n_rows, bad = list[str](), 0, list[BadRow]()
        with closing(Progress("read", reader.total_bytes, in_bytes=True, unit=" rows")) as progress:
            for part in parts_of(good_rows(reader.rows(), bad), self.options.rows_per_part):
                hashes.append(part.sha256)
                n_rows += len(part.rows)
                self._tell_bad(bad, progress)
                progress.advance(len(part.rows), reader.n_bytes)
            self._tell_bad(bad, progress)
            for warning in reader.untimed_fields():
                progress.say(warning)
        if len(hashes) > MAX_PARTS:
            least = -(-n_rows // MAX_PARTS)
            raise ObserverError(f"--rows-per-part: {n_rows:,} rows are more than {MAX_PARTS:,} parts; at least {least}")
        self.unused_fields = reader.unused_fields
        return hashes, n_rows

    def _answer(self, folder: PartsFolder, identity: str, hashes: list[str], done: set[int], n_rows: int) -> None:
        """Have the parts that are missing answered, and write each as it comes."""
        options = self.options
        left = frozenset(range(len(hashes))) - done
        question = Question(
            options.open_reader(), options.rows_per_part, left, options.task, options.spec, identity, options.timeout_s
        )
        with open_cluster(options.address, options.n_workers, options.n_threads) as size:
            print(f"model: {options.spec}", file=sys.stderr)
            print(f"{len(left):,} of {len(hashes):,} parts on {size.n_workers} workers with {size.n_threads} threads "
                  "each", file=sys.stderr, flush=True)  # fmt: skip
            with closing(Progress(VERBS[options.task], n_rows, had=self.n_had, unit=" rows")) as progress:
                try:
                    for answer in answers(question, size):
                        check_asked()
                        self._take(answer, folder, identity, hashes, progress)
                except KeyboardInterrupt:  # it may have come after a part was recorded, and before it was counted
                    self.n_done = sum(done.rows for done in PartsFolder(options.out).done.values()) - self.n_had
                    raise
            self.rows_per_s = progress.per_s
        if missing := left - folder.done.keys():
            raise ObserverError(f"{folder.file(min(missing))}: {_CHANGED}")

    def _take(
        self, answer: dict[str, Any], folder: PartsFolder, identity: str, hashes: list[str], progress: Progress
    ) -> None:
        if answer["stop"]:
            raise ObserverError(answer["stop"])
        done = Done(
            part=answer["part"],
            rows=answer["rows"],
            task=self.options.task,
            model=identity,
            model_name=answer["model_name"],
            input=answer["input"],
            output=hashlib.sha256(answer["lines"]).hexdigest(),
            faults=json.loads(answer["faults"]),
            remarks=json.loads(answer["remarks"]),
        )
        if done.input != hashes[done.part]:
            raise ObserverError(f"{folder.file(done.part)}: {_CHANGED}")
        folder.write(done, answer["lines"])
        self.n_done += done.rows
        progress.advance(done.rows)
        self._tell_of(done, progress)

    def _tell_bad(self, bad: list[BadRow], progress: Progress) -> None:
        for row in bad:
            self.n_bad += 1
            progress.say(f"{row.place}: {row.reason}")
        bad.clear()

    def _tell_of(self, done: Done, progress: Progress | None) -> None:
        self.remarks.update(done.remarks)
        for place, reason in done.faults:
            self.n_bad += 1
            line = f"{place}: {reason}"
            progress.say(line) if progress else print(line, file=sys.stderr)

    def _manifest(self, identity: str, n_rows: int, n_parts: int) -> dict[str, Any]:
        options = self.options
        return {
            "task": options.task,
            "model": {"spec": options.spec, "identity": identity},
            "inputs": [os.fsencode(name).decode("utf-8", "replace") for name in options.inputs],
            "every_turn": options.reading.every_turn,
            "at_field": options.reading.at_field,
            "at": options.at.isoformat() if options.at else None,
            "max_characters": options.reading.max_characters,
            "rows_per_part": options.rows_per_part,
            "rows": n_rows,
            "parts": n_parts,
            "bad_rows": self.n_bad,
            "environment": environment(),
        }


def _is_whole(manifest: Path) -> bool:
    """Whether a run has come to its end; a kill may have come before it could say so."""
    try:
        return json.loads(manifest.read_bytes())["is_whole"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


_CHANGED = "the input changed while it was read; run the same command again"


def _fix(name: str) -> str:
    if name == STDIN:
        return "save standard input in one"
    return "" if os.path.exists(name) or Path(name).suffix else "text goes without --ray"


def run_bulk(options: BulkOptions) -> int:
    """A whole run with its last words on stderr; returns 1 when rows had a fault, 130 when interrupted."""
    run = BulkRun(options)
    try:
        run.run()
    except KeyboardInterrupt:
        print(f"\ninterrupted after {run.n_done + run.n_had:,}: {options.out} is whole, the same command goes on there",
              file=sys.stderr)  # fmt: skip
        return 130
    except ObserverError as error:
        if n_rows := run.n_done + run.n_had:
            raise ObserverError(f"{error}\n{options.out} holds {n_rows:,} answers; the same command goes on there") \
                from error  # fmt: skip
        raise
    print(run.summary(), file=sys.stderr)
    return int(run.n_bad > 0)
