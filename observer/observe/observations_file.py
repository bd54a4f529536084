"""`--out`: a file of observations, a line each, that a later call goes on with. What is in it is not done again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from observer.errors import ObserverError, raise_all
from observer.files import append_whole, explain_os_error, open_record
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

    def write(self, observations: Sequence[Observation]) -> None:
        """Append a line each. Raises ObserverError when the disk does not take them."""
        try:
            append_whole(self._stream.fileno(), b"".join(to_line(observation) for observation in observations))
        except OSError as error:
            raise ObserverError(explain_os_error(error, self.path)) from error
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

    def read(self) -> None:
        """Learn what is done, and drop a last line that a kill cut short. Raises ObserverError naming foreign lines."""
        faults: list[str] = []
        n_whole = 0
        self._stream.seek(0)
        for number, line in enumerate(self._stream, 1):
            if not line.endswith(b"\n") and _is_torn(line):
                break
            n_whole += len(line)
            fault = self._take(line)
            faults += [f"{self.path}:{number}: {fault}; name another file with --out"] if fault else []
        raise_all(faults, limit=5)
        self._stream.truncate(n_whole)

    def _take(self, line: bytes) -> str:
        try:
            observation = Observation.model_validate_json(line)
        except ValidationError:
            return "no observation"
        if observation.id is None:
            return "an observation without id"
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
    with open_record(path, "wait for its end, or name another --out") as stream:
        ledger = Ledger(path, stream, task)
        ledger.read()
        yield ledger


def _is_torn(line: bytes) -> bool:
    """Whether a line without its end begins as ours do; what else stands there is not ours to drop."""
    return any(line.startswith(start) or start.startswith(line) for start in _STARTS)


def to_line(observation: Observation) -> bytes:
    """Compact JSON, what is empty left out; `Observation.model_validate_json` reads it back."""
    return observation.model_dump_json(exclude_defaults=True).encode() + b"\n"
