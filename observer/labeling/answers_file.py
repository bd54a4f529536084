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

from observer.files import disk_errors_explained, parse_json
from observer.journal import append, open_journal, read_lines

_START = b'{"key": '
_CUT_OFF = frozenset({"length", "max_tokens", "model_length", "model_context_window_exceeded"})
_FILTERED = frozenset({"content_filter", "safety", "sensitive", "prohibited_content", "blocklist", "refusal"})
_FAILED = frozenset({"error", "abort", "network_error", "insufficient_system_resource"})
"""Ends of answers in the words of OpenAI, Mistral, Gemini, Anthropic, GLM, DeepSeek, OpenRouter and SGLang."""


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
        is_empty = not (self.text.strip() or self.refusal or self.is_cut_off or self.is_filtered)
        return is_empty or self.finish_reason.lower() in _FAILED

    @property
    def is_cut_off(self) -> bool:
        return self.finish_reason.lower() in _CUT_OFF

    @property
    def is_filtered(self) -> bool:
        return self.finish_reason.lower() in _FILTERED


_ANSWER = TypeAdapter(Answer)
_NAMES = [field.name for field in fields(Answer)]


class Ledger:
    """The last answer of each key, and what all cost; `append` returns once the line is on the disk."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.answers, self.cost_usd = dict[str, Answer](), 0.0
        self._path, self._stream = path, stream
        read_lines(stream, path, [_START], self._take)

    def append(self, key: str, answer: Answer) -> None:
        """Record one answer. Raises ObserverError when the disk does not take it."""
        record = {"key": key, "time": datetime.now(UTC).isoformat(timespec="seconds")} | asdict(answer)
        append(self._stream, self._path, json.dumps(record).encode() + b"\n")
        self._add(key, answer)

    def _add(self, key: str, answer: Answer) -> None:
        self.answers[key] = answer
        self.cost_usd += answer.cost_usd

    def _take(self, line: bytes) -> str:
        try:
            record = parse_json(line)
            key, answer = str(record["key"]), _ANSWER.validate_python({name: record[name] for name in _NAMES})
            if not math.isfinite(answer.cost_usd):
                raise ValueError("costs that are no number")
        except (ValueError, KeyError, TypeError):
            return "no line of a ledger; delete it, or name another file with --ledger"
        self._add(key, answer)
        return ""


@contextlib.contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Open and lock the ledger. Raises ObserverError while another run holds it, and for a file that is no ledger."""
    with open_journal(path, "wait for its end, or give --ledger FILE") as stream:
        yield Ledger(path, stream)


def read_ledger(path: Path) -> tuple[dict[str, Answer], float]:
    """The answers of a ledger that is only looked at, and what all cost; none when there is no such file."""
    if not path.exists():
        return {}, 0.0
    with disk_errors_explained(path), path.open("rb") as stream:
        ledger = Ledger(path, stream)
    return ledger.answers, ledger.cost_usd
