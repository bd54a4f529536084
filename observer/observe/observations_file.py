"""`--out`: a file of observations, a line each, that a later call goes on with. What is in it is not done again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from observer.errors import ObserverError
from observer.journal import append, open_journal, read_lines
from observer.observation import Asked, Observation

_STARTS = [f'{{"{name}":'.encode() for name in Observation.model_fields]


class Ledger:
    """`done` is the fault (or None) of every id in the file, `text_hashes` what the id stands for there; a written line
    is on the disk when `write` returns."""

    def __init__(self, path: Path, stream: BinaryIO, task: Asked) -> None:
        self.path, self.model = path, ""
        self.done: dict[str, str | None] = {}
        self.text_hashes: dict[str, str | None] = {}
        self._stream, self._task = stream, task
        read_lines(stream, path, _STARTS, self._take)

    def write(self, observations: Sequence[Observation]) -> None:
        """Append a line each. Raises ObserverError when the disk does not take them."""
        append(self._stream, self.path, b"".join(to_line(observation) for observation in observations))
        for observation in observations:
            self._add(observation)

    def _add(self, observation: Observation) -> None:
        self.done[str(observation.id)] = observation.fault
        self.text_hashes[str(observation.id)] = observation.text_hash

    def check_model(self, name: str) -> None:
        """Raises ObserverError when another model gave the answers that are there."""
        if self.model not in ("", name):
            raise ObserverError(
                f"{self.path}: holds answers of {self.model}, and this is {name}; give that --model, or another --out"
            )

    def n_lines(self) -> int:
        """How many observations the file holds: counted there, since a signal may come between a write and `done`."""
        with self.path.open("rb") as stream:
            return sum(1 for _ in stream)

    def observations(self) -> Iterator[Observation]:
        """What is in the file, read anew."""
        with self.path.open("rb") as stream:
            for line in stream:
                yield Observation.model_validate_json(line)

    def _take(self, line: bytes) -> str:
        try:
            observation = Observation.model_validate_json(line)
        except ValidationError:
            return "no observation; name another file with --out"
        if observation.id is None:
            return "an observation without id; name another file with --out"
        if observation.task != self._task:  # as are all lines of the file
            raise ObserverError(
                f"{self.path}: holds answers of `observer {observation.task}`, and this is `observer {self._task}`; "
                "name another file with --out"
            )
        self._add(observation)
        self.model = observation.model
        return ""


@contextlib.contextmanager
def open_ledger(path: Path, task: Asked) -> Iterator[Ledger]:
    """Open, lock and read. Raises ObserverError while another run writes to it, and for a file of anything else."""
    with open_journal(path, "wait for its end, or name another --out") as stream:
        yield Ledger(path, stream, task)


def to_line(observation: Observation) -> bytes:
    """Compact JSON, what is empty left out; `Observation.model_validate_json` reads it back."""
    return observation.model_dump_json(exclude_defaults=True).encode() + b"\n"
