"""The append-only record of every answer that was paid for: what makes a cut run resume and nothing cost twice."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter

from observer.errors import ObserverError, raise_all
from observer.files import append_whole, explain_os_error, open_record, parse_json

_START = b'{"key": '


@dataclass(frozen=True)
class Answer:
    """What a server sent back for one call. `refusal` is the server's own field, empty when it did not refuse."""

    text: str
    finish_reason: str = "stop"
    refusal: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    @property
    def is_none(self) -> bool:
        """Whether it was paid for and says nothing: a fault of the server's, so that another run asks again."""
        is_empty = not (self.text.strip() or self.refusal) and self.finish_reason not in ("length", "content_filter")
        return is_empty or self.finish_reason == "error"


_ANSWER = TypeAdapter(Answer)


class Ledger:
    """The last answer of each key, and what all cost; `append` returns once the line is on the disk."""

    def __init__(self, answers: dict[str, Answer], cost_usd: float, stream: BinaryIO, path: Path) -> None:
        self.answers, self.cost_usd = answers, cost_usd
        self._stream, self._path = stream, path

    def append(self, key: str, answer: Answer) -> None:
        """Record one answer. Raises ObserverError when the disk does not take it."""
        record = {"key": key, "time": datetime.now(UTC).isoformat(timespec="seconds")} | asdict(answer)
        try:
            append_whole(self._stream.fileno(), json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise ObserverError(explain_os_error(error, self._path)) from error
        self.answers[key] = answer
        self.cost_usd += answer.cost_usd


@contextlib.contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Open and lock the ledger; a last line that a kill cut short is dropped.

    Raises ObserverError while another run holds it, and for a file that is no ledger.
    """
    with open_record(path, "wait for its end, or give --ledger FILE") as stream:
        data = stream.read()
        answers, cost_usd = _parse(data, path)
        stream.truncate(data.rfind(b"\n") + 1)
        yield Ledger(answers, cost_usd, stream, path)


def read_ledger(path: Path) -> tuple[dict[str, Answer], float]:
    """The answers of a ledger that is only looked at, and what all cost; none when there is no such file."""
    try:
        return _parse(path.read_bytes(), path)
    except FileNotFoundError:
        return {}, 0.0
    except OSError as error:
        raise ObserverError(explain_os_error(error, path)) from error


def _parse(data: bytes, path: Path) -> tuple[dict[str, Answer], float]:
    *lines, torn = data.split(b"\n")
    names = [field.name for field in fields(Answer)]
    answers, cost_usd, faults = dict[str, Answer](), 0.0, list[str]()
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
            answers[str(record["key"])] = answer = _ANSWER.validate_python({name: record[name] for name in names})
            if not math.isfinite(answer.cost_usd):
                raise ValueError("costs that are no number")
            cost_usd += answer.cost_usd
        except (ValueError, KeyError, TypeError):
            faults.append(f"{path}:{number}: no line of a ledger; delete it, or name another file with --ledger")
    if torn and not torn.startswith(_START) and not _START.startswith(torn):
        faults.append(f"{path}:{len(lines) + 1}: no line of a ledger; name another file with --ledger")
    raise_all(faults, limit=5)
    return answers, cost_usd
