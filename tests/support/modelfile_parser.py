"""Reads a Modelfile as Ollama does, and refuses what Ollama refuses or takes otherwise than it is written.

A value ends at the end of a line on which its quotes are closed; there are no escapes; line
breaks inside are kept as they are; characters that are not
printable vanish. Source: https://github.com/ollama/ollama/blob/main/parser/parser.go
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from observer.errors import raise_all

COMMANDS = frozenset(
    "FROM ADAPTER TEMPLATE SYSTEM PARAMETER LICENSE MESSAGE RENDERER PARSER REQUIRES DRAFT".split()
)  # fmt: skip
INTS = frozenset(
    "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu main_gpu num_thread "
    "draft_num_predict".split()
)  # fmt: skip
FLOATS = frozenset("top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty".split())
BOOLS = frozenset({"use_mmap"})
PARAMETERS = INTS | FLOATS | BOOLS | {"stop"}
_REPEATABLE = frozenset({"LICENSE", "MESSAGE"})
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
    """Raises ObserverError naming every fault with its line."""
    modelfile, faults = Modelfile(), list[str]()
    for statement in _statements(text.removeprefix("\ufeff"), faults):
        fault = _take(modelfile, statement)
        faults += [f"{statement.line}: {fault}"] if fault else []
    if not faults and "FROM" not in modelfile.commands:
        faults.append("1: no FROM; name a model or a GGUF file")
    raise_all([f"{place}:{fault}" for fault in faults])
    return modelfile


@dataclass(frozen=True)
class _Statement:
    """One command in capitals; `name` is a parameter's or a role; `value` is without its quotes."""

    line: int
    command: str
    name: str
    value: str


def _statements(text: str, faults: list[str]) -> Iterator[_Statement]:
    parts = [*re.split(r"(\r\n|[\r\n])", text), ""]
    lines = ((number, line, end) for number, (line, end) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1))
    for number, line, end in lines:
        if not line.strip(_SPACE) or line.lstrip(_SPACE).startswith("#"):
            continue
        word, value = _cut(line.lstrip(_SPACE))
        command, name = word.upper(), ""
        if command not in COMMANDS:
            faults.append(f"{number}: unknown command {word!r}; {_near(command, COMMANDS)}")
            continue
        if command in ("PARAMETER", "MESSAGE"):
            name, value = _cut(value)
        while (plain := _unquote(value.strip())) is None:
            _, more, next_end = next(lines, (0, None, ""))
            if more is None:
                faults.append(f"{number}: the quotes of {word} are never closed at the end of a line")
                return
            value, end = value + end + more, next_end
        if dropped := sorted({c for c in value if not c.isprintable() and c not in "\r\n\t"}):
            faults.append(f"{number}: Ollama drops {', '.join(map(ascii, dropped))} in silence; take them out")
        yield _Statement(number, command, name, plain)


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


def _take(modelfile: Modelfile, statement: _Statement) -> str:
    """Add one statement; return its fault, or nothing."""
    command, value = statement.command, statement.value
    if command == "PARAMETER":
        return _take_parameter(modelfile, statement.name, value)
    if not value:
        return f"{command} is empty; give it a value or delete the line"
    if command in modelfile.commands and command not in _REPEATABLE:
        return f"{command} is given twice; keep one"
    if command == "REQUIRES" and not _VERSION.fullmatch(value):
        return f"REQUIRES {value!r} is no version; such as 0.14.0"
    if command == "MESSAGE" and statement.name not in _ROLES:
        return f"MESSAGE of {statement.name!r}; allowed: {', '.join(_ROLES)}"
    text = f"{statement.name}: {value}" if command == "MESSAGE" else value
    modelfile.commands.setdefault(command, []).append(text)
    return ""


def _take_parameter(modelfile: Modelfile, name: str, text: str) -> str:
    if name not in PARAMETERS:
        return f"unknown parameter {name!r}; {_near(name, PARAMETERS)}"
    if not text:
        return f"PARAMETER {name} is empty; give it a value or delete the line"
    if name == "stop":
        modelfile.parameters.setdefault("stop", []).append(text)
        return ""
    if name in modelfile.parameters:
        return f"PARAMETER {name} is given twice; keep one"
    value = _typed(name, text)
    if value is None:
        kind = "a whole number" if name in INTS else "a number" if name in FLOATS else "true or false"
        return f"PARAMETER {name} is {text!r}; {kind} is expected"
    modelfile.parameters[name] = value
    return ""


def _typed(name: str, text: str) -> int | float | bool | None:
    if name in BOOLS:
        return {"true": True, "false": False}.get(text.lower())
    if name in INTS:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _near(word: str, allowed: frozenset[str]) -> str:
    near = difflib.get_close_matches(word, sorted(allowed), n=1)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(sorted(allowed))}"
