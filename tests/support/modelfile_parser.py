"""Reads a Modelfile as Ollama does, and refuses what Ollama refuses or takes otherwise than it is written.

A value ends at the end of a line on which its quotes are closed; there are no escapes; line breaks inside are kept as
they are; characters that are not printable vanish. Source: https://github.com/ollama/ollama/blob/main/parser/parser.go
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from observer.errors import ObserverError

COMMANDS = frozenset(
    "FROM ADAPTER TEMPLATE SYSTEM PARAMETER LICENSE MESSAGE RENDERER PARSER REQUIRES DRAFT".split()
)  # fmt: skip
INTS = frozenset(
    "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu main_gpu num_thread "
    "draft_num_predict".split()
)  # fmt: skip
FLOATS = frozenset("top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty".split())
_ROLES = ("system", "user", "assistant")
_SPACE = " \t"
_VERSION = re.compile(r"v?(0|[1-9]\d*)(\.(0|[1-9]\d*)){0,2}(-[0-9A-Za-z.-]+)?")


@dataclass
class Modelfile:
    """What Ollama takes from the text: values by command, and typed parameters (`stop` is a list)."""

    commands: dict[str, list[str]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    def only(self, command: str) -> str:
        """The one value of a command that was given."""
        (value,) = self.commands[command]
        return value

    def get(self, command: str) -> str | None:
        return self.commands.get(command, [None])[0]


def parse_modelfile(text: str, place: str = "Modelfile") -> Modelfile:
    """Raises ObserverError naming the first fault and its line."""
    modelfile = Modelfile()
    for number, command, name, value in _statements(text.removeprefix("\ufeff")):
        try:
            _take(modelfile, command, name, value)
        except ValueError as error:
            raise ObserverError(f"{place}:{number}: {error}") from None
    if "FROM" not in modelfile.commands:
        raise ObserverError(f"{place}:1: no FROM")
    return modelfile


def _statements(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Line, command in capitals, name of a parameter or role, and value: up to a line's end that closes its quotes."""
    parts = [*re.split(r"(\r\n|[\r\n])", text), ""]
    lines = ((number, line, end) for number, (line, end) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1))
    for number, line, end in lines:
        if not line.strip(_SPACE) or line.lstrip(_SPACE).startswith("#"):
            continue
        word, value = _cut(line.lstrip(_SPACE))
        command, name = word.upper(), ""
        if command in ("PARAMETER", "MESSAGE"):
            name, value = _cut(value)
        while _unquote(value.strip()) is None and (following := next(lines, None)):
            value, end = value + end + following[1], following[2]
        yield number, command, name, value


def _cut(text: str) -> tuple[str, str]:
    """The first word, and what stands behind the blank that ends it."""
    word, *rest = re.split(f"[{_SPACE}]", text, maxsplit=1)
    return word, "".join(rest)


def _unquote(value: str) -> str | None:
    """The value without its quotes; None while they are still open."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            is_closed = value.endswith(quotes) and len(value) >= 2 * len(quotes)
            return value[len(quotes) : -len(quotes)] if is_closed else None
    return value


def _take(modelfile: Modelfile, command: str, name: str, text: str) -> None:
    """Add one statement. Raises ValueError for its fault."""
    value, what = _unquote(text.strip()), f"{command} {name}".strip()
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}")
    if value is None:
        raise ValueError(f"the quotes of {what} are never closed at the end of a line")
    if dropped := sorted({c for c in text if not c.isprintable() and c not in "\r\n\t"}):
        raise ValueError(f"Ollama drops {', '.join(map(ascii, dropped))} in silence")
    if not value:
        raise ValueError(f"{what} is empty")
    if command == "PARAMETER" and name == "stop":
        modelfile.parameters.setdefault("stop", []).append(value)
        return
    if name in modelfile.parameters or (command in modelfile.commands and command not in ("LICENSE", "MESSAGE")):
        raise ValueError(f"{what} is given twice")
    if command == "PARAMETER":
        modelfile.parameters[name] = _typed(name, value)
        return
    if command == "REQUIRES" and not _VERSION.fullmatch(value):
        raise ValueError(f"REQUIRES {value!r} is no version")
    if command == "MESSAGE" and name not in _ROLES:
        raise ValueError(f"MESSAGE of {name!r}")
    modelfile.commands.setdefault(command, []).append(f"{name}: {value}" if command == "MESSAGE" else value)


def _typed(name: str, text: str) -> int | float | bool:
    if name in INTS and re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if name == "use_mmap" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name in FLOATS and math.isfinite(float(text)):
        return float(text)
    known = name in INTS or name in FLOATS or name == "use_mmap"
    raise ValueError(f"PARAMETER {name} is {text!r}" if known else f"unknown parameter {name!r}")
