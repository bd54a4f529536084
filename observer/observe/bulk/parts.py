"""The folder of a bulk run: parts of a corpus, each written whole or not at all, and what is known of them.

`part-00000.jsonl` and so on hold the observations, `parts.jsonl` a line for each finished part, `manifest.json` what
was run. Who asks the models is `bulk`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from observer.errors import ObserverError, raise_all
from observer.files import atomic_path, parse_json, sha256_file
from observer.journal import append, open_journal, read_lines
from observer.observation import Asked
from observer.observe.reading import Row
from observer.observe.streaming import batches
from observer.turns.inputs import Unreadable

MAX_PARTS = 100_000
"""Five digits, so that the names sort as the parts do."""
_WAIT = "wait for its end, or name another folder with --out"


@dataclass(frozen=True)
class Part:
    """Rows that are answered together; the number is that of the first row by the rows of a part."""

    number: int
    rows: Sequence[Row]

    @property
    def sha256(self) -> str:
        """Of all that a model gets to see, and of ids and times."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(row.exchange.model_dump_json().encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Done:
    """A finished part. `model` is what `worker.identify` says, `input` and `output` are hashes, `faults` are
    place and reason of rows whose observation has one, `remarks` say of how many something else is to be told."""

    part: int
    rows: int
    task: Asked
    model: str
    model_name: str
    input: str
    output: str
    faults: list[tuple[str, str]] = field(default_factory=list)
    remarks: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError, TypeError or KeyError for what is none."""
        fields = parse_json(text)
        return cls(**fields | {"faults": [(place, reason) for place, reason in fields["faults"]]})


def parts_of(rows: Iterable[Row], rows_per_part: int) -> Iterator[Part]:
    """The same rows make the same parts."""
    for number, batch in enumerate(batches(rows, rows_per_part)):
        yield Part(number, batch)


def good_rows(
    rows: Iterable[Row | Unreadable], tell: Callable[[Unreadable], None] = lambda _row: None
) -> Iterator[Row]:
    """The rows that can be asked about; of the others `tell`."""
    for row in rows:
        if isinstance(row, Row):
            yield row
        else:
            tell(row)


class PartsFolder:
    """Parts that are there: `done` has those that are recorded and not deleted since. That one run at a time holds the
    folder is its caller's to see to."""

    def __init__(self, path: Path) -> None:
        self.path, self.ledger = path, path / "parts.jsonl"
        is_ours = self.ledger.exists()
        if not is_ours and (found := sorted(path.glob("part-*.jsonl"))):
            raise ObserverError(f"{found[0]}: no {self.ledger.name} tells what made it; name another folder with --out")
        self.done = dict[int, Done]()
        if is_ours:
            with open_journal(self.ledger, _WAIT) as stream:
                read_lines(stream, self.ledger, [b'{"part": '], self._take)
        self.done = {number: done for number, done in self.done.items() if self.file(number).exists()}

    def file(self, number: int) -> Path:
        return self.path / f"part-{number:05}.jsonl"

    def finished(self, hashes: Sequence[str], task: Asked, model: str, name: str) -> set[int]:
        """The parts that need no more work; `hashes` are those of all parts' rows.

        Raises ObserverError naming every part that another model, task or input has made, or that has been changed.
        """
        for done in self.done.values():
            self._check_maker(done, task, model, name)
        raise_all([fault for done in self.done.values() if (fault := self._fault(done, hashes))], limit=5)
        return set(self.done)

    def write(self, done: Done, lines: bytes) -> None:
        """Put the part in place, then say so. Raises ObserverError when the disk does not take it."""
        with atomic_path(self.file(done.part), is_private=True) as temporary:
            temporary.write_bytes(lines)
        with open_journal(self.ledger, _WAIT) as stream:
            append(stream, self.ledger, f"{done.to_json()}\n".encode())
        self.done[done.part] = done

    def _check_maker(self, done: Done, task: Asked, model: str, name: str) -> None:
        if done.task != task:
            raise ObserverError(
                f"{self.path}: holds answers of `observer {done.task}`, and this is `observer {task}`; "
                "name another folder with --out"
            )
        if done.model != model:
            raise ObserverError(
                f"{self.path}: holds answers of {done.model_name} ({done.model:.19}), and this is {name} "
                f"({model:.19}); give that --model, or another --out"
            )

    def _fault(self, done: Done, hashes: Sequence[str]) -> str:
        file = self.file(done.part)
        if done.part >= len(hashes) or done.input != hashes[done.part]:
            return (
                f"{file}: the input has other rows now (edited files, or another --rows-per-part, --every-turn, --at "
                "or --max-characters); name another folder with --out, or delete this part to have it made anew"
            )
        if done.output != sha256_file(file):
            return f"{file}: changed since it was written; delete it to have it made anew"
        return ""

    def _take(self, line: bytes) -> str:
        try:
            done = Done.from_json(line)
        except (ValueError, TypeError, KeyError):
            return "not a record of ours; name another folder with --out"
        self.done[done.part] = done  # later lines stand
        return ""
