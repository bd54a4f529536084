"""The files that people have, as lines of JSON or of text: also compressed, one array, indented JSON, and tables.

A byte-order mark may open any line, and lines may end in LF, CR or both. Files of other formats are named.
"""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from observer.errors import ObserverError
from observer.files import explain_os_error, parse_json
from observer.turns.conversation import MARKER, is_conversation

_BOM = b"\xef\xbb\xbf"
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd; `zstd -d` it",
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save it as JSON lines or CSV",
    b"PAR1": "Parquet; pandas' `read_parquet(FILE).to_json(OUT, orient='records', lines=True)` makes JSON lines of it",
    b"ARROW1": "Arrow; `to_json` of the package datasets makes JSON lines of it",
    b"SQLite format 3": "a database; export its rows as JSON lines",
    b"%PDF": "a PDF; save its text as USER: and ASSISTANT: lines",
    b"\xff\xfe": "UTF-16 text; `iconv -f UTF-16 -t UTF-8` it",
    b"\xfe\xff": "UTF-16 text; `iconv -f UTF-16 -t UTF-8` it",
}
"""First bytes -> what it is, and what to do."""
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COLUMNS = frozenset({"user_message", "messages", "conversations"})
"""One of these heads a column of every table that can be read."""
_LISTS = COLUMNS - {"user_message"} | {"context", "entities", "relationships", "slices", "names"}
"""Columns whose cells are lists, as JSON or as Python writes them."""
_OPENS_ARRAY = re.compile(rb'\s*\[\s*(?:$|[{\["\]])')
_CSV_CELL_CHARACTERS = 2**31 - 1
_LONGEST_INDENTED = 20_000
"""Lines of an indented object; what is open after so many is a line that is broken."""


class Line(NamedTuple):
    """`number` is that of a line of the file, `3`, or of a piece of it, `3[0]`."""

    number: str
    text: bytes


def lines_of(stream: BinaryIO, name: str) -> Iterator[Line]:
    """Every line without its end, blank ones too; of an array and of a table each row is one.

    A line is read when it is asked for, of an array all. Raises ObserverError for what is no text.
    """
    if name.endswith(_ARCHIVES):
        raise ObserverError(f"{name}: an archive; unpack it and name the files in it")
    lines = _numbered(_reading(stream, name))
    opening: list[Line] = []
    for line in lines:
        opening.append(line)
        if line.text.strip():
            break
    first = opening[-1].text if opening else b""
    if separator := _separator(first, name):
        return _table_rows(chain(opening[-1:], lines), separator, name)
    if _OPENS_ARRAY.match(first) and _json(first) is None:
        return _array_rows([*opening, *lines], name)
    return _objects(chain(opening, lines))


def lines_of_file(path: Path) -> list[Line]:
    """All lines of a file. Raises ObserverError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            return [*lines_of(stream, str(path))]
    except OSError as error:
        raise ObserverError(explain_os_error(error, path)) from error


def _decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    peekable = stream if hasattr(stream, "peek") else io.BufferedReader(cast(io.RawIOBase, stream))
    start = cast(io.BufferedReader, peekable).peek(16)[:16]
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise ObserverError(f"{name}: {what}")
    opened = next((opened for magic, opened in _COMPRESSED.items() if start.startswith(magic)), None)
    return _decompressed(cast(BinaryIO, opened(peekable, "rb")), name) if opened else cast(BinaryIO, peekable)


def _reading(stream: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        yield from _decompressed(stream, name)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of gzip or bzip2
            raise
        raise ObserverError(f"{name}: compressed, and cut or broken ({error}); take a whole copy") from error


def _numbered(raw_lines: Iterable[bytes]) -> Iterator[Line]:
    number = 0
    for raw in raw_lines:
        for part in raw.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
            number += 1
            yield Line(str(number), part.removeprefix(_BOM))


def _json(text: bytes) -> Any:
    """The value; None where it is none, or null."""
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        return None


def _objects(lines: Iterable[Line]) -> Iterator[Line]:
    """Lines as they are, but an indented object is one, and so is each row of a list; marked text is left alone."""
    source, waiting, is_text = iter(lines), deque[Line](), False

    def following() -> Iterator[Line]:
        while waiting:
            yield waiting.popleft()
        yield from source

    while line := next(following(), None):
        text = line.text.strip()
        is_text = text not in (b"", b"---") and (is_text or bool(MARKER.match(text.decode("utf-8", "replace"))))
        if is_text or not text.startswith((b"{", b"[")):
            yield line
        elif text.startswith(b"["):
            yield from _pieces(line)
        elif text.endswith(b"}"):
            yield line
        else:
            held = [line]
            yield _indented(held, following()) or line
            waiting.extendleft(reversed(held[1:]))


def _indented(held: list[Line], following: Iterator[Line]) -> Line | None:
    """The object that the first of `held` opens, up to the brace below its own; else `held` keeps what was read."""
    text = held[0].text
    indent = text[: len(text) - len(text.lstrip())]
    for line in following:
        held.append(line)
        mark = line.text[len(indent) : len(indent) + 1] if line.text.startswith(indent) else b""
        if mark == b"}" and _json(whole := b" ".join(part.text for part in held)) is not None:
            del held[1:]
            return Line(held[0].number, whole)
        if mark in (b"{", b"}") or len(held) > _LONGEST_INDENTED:
            return None
    return None


def _pieces(line: Line) -> Iterator[Line]:
    """The rows of a list on one line; a list of messages is one conversation."""
    rows = _json(line.text)
    if not isinstance(rows, list) or is_conversation(rows) or not all(map(_is_row, rows)):
        rows = []
    pieces = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    yield from [Line(f"{line.number}[{index}]", piece) for index, piece in enumerate(pieces)] or [line]


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) or is_conversation(value)


def _array_rows(lines: list[Line], name: str) -> Iterator[Line]:
    """The elements of an array over several lines."""
    try:
        text = b"\n".join(line.text for line in lines).decode("utf-8")
        rows = parse_json(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        if any(isinstance(_json(line.text), dict) for line in lines):  # lines, the first of them broken
            yield from _objects(lines)
            return
        raise ObserverError(f"{name}:{_bad_line(error)}") from error
    yield from _pieces_by_line(text, rows)


def _bad_line(error: UnicodeDecodeError | json.JSONDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        number = error.object[: error.start].count(b"\n") + 1
        return f"{number}: not UTF-8 text; save the file as UTF-8"
    return f"{error.lineno}: a JSON array, cut or broken here ({error.msg}); fix it, or give one object a line"


def _pieces_by_line(text: str, rows: list[Any]) -> Iterator[Line]:
    """The elements of an array that is whole, with the line at which each begins."""
    if is_conversation(rows):
        yield Line("1", text.replace("\n", " ").encode())
        return
    decoder, at, number, before = json.JSONDecoder(), text.index("[") + 1, 1, 0
    seen: set[int] = set()
    for index in range(len(rows)):
        while text[at] == "," or text[at].isspace():
            at += 1
        number, before = number + text.count("\n", before, at), at
        _, end = decoder.raw_decode(text, at)
        place = f"{number}[{index}]" if number in seen else str(number)
        seen.add(number)
        yield Line(place, text[at:end].replace("\n", " ").encode())
        at = end


def _separator(header: bytes, name: str) -> str:
    """What parts the cells of a table; empty where there is none."""
    text = header.decode("utf-8", "replace")
    known = [mark for mark in ",;\t|" if COLUMNS & {cell.strip(' "').casefold() for cell in text.split(mark)}]
    if text.strip() and text.lstrip()[0] not in "{[" and known:
        return known[0]
    is_named = any(suffix.lower() in (".csv", ".tsv") for suffix in Path(name).suffixes[-2:])
    is_table = is_named and text.lstrip()[:1] not in ("{", "[", "")
    return ("\t" if "\t" in text else ";" if text.count(";") > text.count(",") else ",") if is_table else ""


def _table_rows(lines: Iterable[Line], separator: str, name: str) -> Iterator[Line]:
    """A row of JSON for each row of a table; empty cells are left out."""
    csv.field_size_limit(_CSV_CELL_CHARACTERS)
    numbers: list[str] = []
    rows = csv.reader(_texts(lines, name, numbers), delimiter=separator, strict=True)
    before = 0
    try:
        header = [cell.strip() for cell in next(rows)]
        if not COLUMNS & set(header):
            found = ", ".join(header)[:80]
            raise ObserverError(
                f"{name}: a table without a column user_message (found: {found}); rename the column of the user's words"
            )
        before = len(numbers)
        for cells in rows:
            names = [*header, *(f"column {number}" for number in range(len(header) + 1, len(cells) + 1))]
            row = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=False) if cell != ""}
            yield Line(numbers[before], json.dumps(row, ensure_ascii=False).encode() if row else b"")
            before = len(numbers)
    except csv.Error as error:
        place, advice = f"{name}:{numbers[before] if numbers else 1}", "is a quote missing, or not doubled?"
        raise ObserverError(f"{place}: not readable as a table ({error}); {advice}") from error


def _texts(lines: Iterable[Line], name: str, numbers: list[str]) -> Iterator[str]:
    for line in lines:
        numbers.append(line.number)
        try:
            yield line.text.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            raise ObserverError(f"{name}:{line.number}: not UTF-8 text; save the file as UTF-8") from error


def _cell(name: str, text: str) -> Any:
    if name not in _LISTS or not text.lstrip().startswith("["):
        return text
    value = _json(text.encode())
    if value is None:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
    return value
