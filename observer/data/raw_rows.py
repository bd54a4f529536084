"""One line of a data file as raw rows: where it has a label and entities, it is a row of either task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observer.files import parse_json
from observer.turns.conversation import Unusable
from observer.turns.file_formats import lines_of_file
from observer.turns.row_fields import GOLD_FIELDS, SPLIT_KEYS, conversation_in, row_fields

_OF_GRADING = frozenset({"label", "reasoning", "confidence"})
_OF_EXTRACTION = frozenset({"entities", "relationships", "confidence"})
MAX_FAULTS_SHOWN = 1_000
CONVERSATION = "a conversation, which has no labels yet; `observer label` makes rows of it"


@dataclass(frozen=True)
class RawRows:
    """The rows of one line, not yet checked against the schema, and the names of fields that are ignored."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """The JSON value of a line, and where it stands; with a `fault` it is none."""

    place: str
    line: bytes
    value: Any = None
    fault: str = ""


def parse_line(place: str, line: bytes) -> Value:
    try:
        return Value(place, line, parse_json(line.decode("utf-8")))
    except UnicodeDecodeError:
        fault = "not UTF-8 text; save the file as UTF-8"
    except json.JSONDecodeError as error:
        fault = f"not JSON ({error.msg}); one object a line is expected"
    return Value(place, line, fault=fault)


def values_of_file(path: Path) -> Iterator[Value]:
    """Every value of the file, each parsed when it is asked for. Raises ObserverError when the file cannot be read."""
    lines = lines_of_file(path)
    return (parse_line(f"{path}:{number}", line) for number, line in lines if line.strip())


def is_split_row(value: Any) -> bool:
    """Whether it is a row that is ready to be trained on, of a split file."""
    if not isinstance(value, dict) or "user_message" in value or not SPLIT_KEYS & value.keys():
        return False
    return "task" in value or any(isinstance(value.get(key), list) for key in SPLIT_KEYS)


def raw_rows(given: Value) -> RawRows:
    """The rows of a value. Raises Unusable for what is none, with what to do where that can be told."""
    if given.fault:
        raise Unusable(given.fault)
    value = given.value
    if not isinstance(value, dict | list):
        raise Unusable(f"found a {type(value).__name__}; one JSON object a line is expected")
    is_raw = isinstance(value, dict) and value.get("user_message") is not None
    if not is_raw and conversation_in(value):
        raise Unusable(CONVERSATION)
    if isinstance(value, list):
        raise Unusable("found a list; one JSON object a line is expected")
    found = row_fields(value)
    keys = found.fields.keys()
    left_out = [GOLD_FIELDS - _OF_GRADING] if "label" in keys else []
    left_out += [GOLD_FIELDS - _OF_EXTRACTION] if keys & {"entities", "relationships"} else []
    if not left_out:
        raise Unusable("neither a label nor entities and relationships; `observer label` asks for them")
    rows = [{key: found.fields[key] for key in keys if key not in fields} for fields in left_out]
    return RawRows(rows, tuple(sorted({*found.unused, *keys} - {key for row in rows for key in row})))
