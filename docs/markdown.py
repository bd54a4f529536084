"""Pieces of Markdown for the generated pages: tables, cells, and types in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def cell(text: str) -> str:
    """Text in a table's cell: but for backticks, nothing of it is markup."""
    text = " ".join(text.split())
    for character in "\\|<*":
        text = text.replace(character, f"\\{character}")
    return text


def type_name(annotation: Any) -> str:
    """`int`, `text`, `auto` \\| `cpu`, a list of …: a field's type for a reader who knows no Python."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        told = [type_name(argument) for argument in arguments if argument is not NoneType]
        return " \\| ".join(told) + (", or empty" if NoneType in arguments else "")
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"{type_name(arguments[0])} to {type_name(arguments[1])}"
    names = {str: "text", Path: "path", bool: "true \\| false", int: "whole number", float: "number"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def yaml_value(value: Any) -> str:
    """As it is written in YAML."""
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_value, value))}]"
    return json.dumps(value) if value is None or value == "" or isinstance(value, bool | dict) else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
