"""`--ray`: a corpus observed by many models at once, on Ray Data, into a folder of parts from which a run is resumed.

The corpus is read twice: first here, to count it, to tell of bad rows and to see what is done; then as a stream that
feeds the workers. Answers come back to this process, which alone writes, so that the machines need no folder in common.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from observer.console.progress import Progress
from observer.console.stopping import check_asked
from observer.errors import ObserverError
from observer.files import write_json
from observer.observe.bulk.cluster import check_installed, open_cluster
from observer.observe.bulk.dataset import BulkOptions, answers
from observer.observe.bulk.parts import MAX_PARTS, Done, PartsFolder, good_rows, parts_of
from observer.observe.bulk.worker import identify
from observer.observe.reading import Reader
from observer.observe.tally import VERBS, Tally
from observer.runs.lock import held_folder
from observer.runs.manifest import environment
from observer.turns.row_fields import unused_fields

_CHANGED = "the input changed while it was read; run the same command again"


class BulkRun:
    """A run, and what it counts."""

    def __init__(self, options: BulkOptions) -> None:
        self.options, self.tally = options, Tally(options.task, options.out)
        self._unused_fields = ""

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
                self.tally.n_had += folder.done[number].rows
                self._tell_of(folder.done[number], kept=folder.file(number).name)
            manifest, path = self._manifest(identity, n_rows, len(hashes)), options.out / "manifest.json"
            if len(done) == len(hashes) and _is_whole(path):
                return
            write_json(path, manifest | {"is_whole": False}, is_private=True)
            start = time.monotonic()
            if len(done) < len(hashes):
                self._answer(folder, identity, hashes, done, n_rows)
            end = {"is_whole": True, "seconds": round(time.monotonic() - start, 1), "rows_done": self.tally.n_done}
            write_json(path, manifest | end, is_private=True)

    def n_kept(self) -> int:
        return self.tally.n_done + self.tally.n_had

    def summary(self) -> str:
        """What was done, in one line."""
        return self.tally.summary(self._unused_fields)

    def _plan(self, reader: Reader) -> tuple[list[str], int]:
        """The hash of every part, and the number of rows; bad rows are told."""
        hashes, n_rows = list[str](), 0
        with closing(Progress("read", reader.total_bytes, in_bytes=True, unit=" rows")) as progress:
            good = good_rows(reader.rows(), lambda row: self.tally.tell(row.place, row.reason, progress))
            for part in parts_of(good, self.options.rows_per_part):
                hashes.append(part.sha256)
                n_rows += len(part.rows)
                progress.advance(len(part.rows), reader.n_bytes)
            for warning in reader.untimed_fields():
                progress.say(warning)
        if len(hashes) > MAX_PARTS:
            least = -(-n_rows // MAX_PARTS)
            raise ObserverError(f"--rows-per-part: {n_rows:,} rows are more than {MAX_PARTS:,} parts; at least {least}")
        self._unused_fields = unused_fields(reader.unused_fields)
        return hashes, n_rows

    def _answer(self, folder: PartsFolder, identity: str, hashes: Sequence[str], done: set[int], n_rows: int) -> None:
        """Have the parts that are missing answered, and write each as it comes."""
        options, tally = self.options, self.tally
        left = frozenset(range(len(hashes))) - done
        with open_cluster(options.address, options.n_workers, options.n_threads) as size:
            print(f"model: {options.spec}", file=sys.stderr)
            print(f"{len(left):,} of {len(hashes):,} parts on {size.n_workers} workers with {size.n_threads} threads "
                  "each", file=sys.stderr, flush=True)  # fmt: skip
            with closing(Progress(VERBS[options.task], n_rows, had=tally.n_had, unit=" rows")) as progress:
                try:
                    for answer in answers(options, left, identity, size):
                        check_asked()
                        self._take(answer, folder, hashes, progress)
                except KeyboardInterrupt:  # it may have come after a part was recorded, and before it was counted
                    tally.n_done = sum(done.rows for done in PartsFolder(options.out).done.values()) - tally.n_had
                    raise
            tally.rows_per_s = progress.per_s
        if missing := left - folder.done.keys():
            raise ObserverError(f"{folder.file(min(missing))}: {_CHANGED}")

    def _take(self, answer: dict[str, Any], folder: PartsFolder, hashes: Sequence[str], progress: Progress) -> None:
        if answer["stop"]:
            raise ObserverError(answer["stop"])
        done = Done.from_json(answer["done"])
        if done.input != hashes[done.part]:
            raise ObserverError(f"{folder.file(done.part)}: {_CHANGED}")
        folder.write(done, answer["lines"])
        self.tally.n_done += done.rows
        progress.advance(done.rows)
        self._tell_of(done, progress)

    def _tell_of(self, done: Done, progress: Progress | None = None, *, kept: str = "") -> None:
        self.tally.remarks.update(done.remarks)
        for place, reason in done.faults:
            self.tally.tell(place, reason, progress, kept=kept)

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
            "bad_rows": self.tally.n_bad,
            "environment": environment(),
        }


def _is_whole(manifest: Path) -> bool:
    """Whether a run has come to its end; a kill may have come before it could say so."""
    try:
        return json.loads(manifest.read_bytes())["is_whole"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False
