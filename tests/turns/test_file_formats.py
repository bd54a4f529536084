"""The same rows come out of every form of file that people have, and other files are named."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.errors import ObserverError
from observer.turns.file_formats import lines_of

ROWS: list[dict[str, Any]] = [
    {"id": "a", "user_message": "I moved to Köln,\nlast May", "assistant_message": '"Good" luck', "label": "STORE"},
    {"id": "b", "user_message": "[sic] {tea} | 'x'; y", "assistant_message": "ok", "label": "STORE"},
]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def values(data: bytes, name: str = "rows") -> list[Any]:
    return [json.loads(text) for _, text in lines_of(io.BytesIO(data), name) if text.strip()]


def numbers(data: bytes) -> list[str]:
    return [number for number, text in lines_of(io.BytesIO(data), "rows") if text.strip()]


def as_lines(rows: list[Any], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def as_table(rows: list[dict[str, Any]], separator: str, end: str = "\r\n") -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def indented(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row, indent=2) for row in rows).encode()


FORMS: dict[str, Callable[[list[Any]], bytes]] = {
    "lines": as_lines,
    "lines that end in CR": lambda rows: as_lines(rows, "\r"),
    "lines that end in CR and LF": lambda rows: as_lines(rows, "\r\n"),
    "files with a mark, joined": lambda rows: b"".join(b"\xef\xbb\xbf" + as_lines([row]) for row in rows),
    "array on one line": lambda rows: json.dumps(rows).encode(),
    "array with a row a line": lambda rows: b"[" + b",\n".join(as_lines([row], "") for row in rows) + b"]\n",
    "indented array": lambda rows: json.dumps(rows, indent=1).encode(),
    "indented objects": indented,
    "gzip": lambda rows: gzip.compress(as_lines(rows)),
    "gzip of an array": lambda rows: gzip.compress(json.dumps(rows, indent=4).encode()),
    "bzip2": lambda rows: bz2.compress(as_lines(rows)),
    "xz": lambda rows: lzma.compress(as_lines(rows)),
}
TABLES: dict[str, Callable[[list[Any]], bytes]] = {
    f"table with {separator!r}": lambda rows, separator=separator: as_table(rows, separator) for separator in ",;\t|"
}


@pytest.mark.parametrize("form", [*FORMS, *TABLES])
def test_every_form_holds_the_same_rows(form: str) -> None:
    found = values((FORMS | TABLES)[form](ROWS))
    assert [row | {"user_message": row["user_message"].replace("\r\n", "\n")} for row in found] == ROWS


@given(
    st.sampled_from(list(FORMS)),
    st.lists(st.dictionaries(st.text(), st.none() | st.text() | st.integers()), min_size=1),
)
def test_any_rows_come_back_from_every_form(form: str, rows: list[dict[str, Any]]) -> None:
    assert values(FORMS[form](rows)) == rows


@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_messages_is_one_conversation(form: str) -> None:
    conversations = [CHAT, [{"from": "human", "value": "hi"}]]
    if form not in ("indented objects",):
        assert values(FORMS[form](conversations)) == conversations
    assert values(json.dumps(CHAT, indent=1).encode()) == [CHAT]


def test_a_place_is_the_line_where_a_row_begins() -> None:
    assert numbers(json.dumps(ROWS, indent=1).encode()) == ["2", "8"]
    assert numbers(indented(ROWS)) == ["1", "7"]
    assert numbers(json.dumps(ROWS).encode()) == ["1[0]", "1[1]"]
    assert numbers(as_table(ROWS, ",", "\n")) == ["2", "4"]


def test_cells_that_hold_lists_are_read_as_json_and_as_python_writes_them() -> None:
    for cell in (json.dumps(CHAT), str(CHAT)):
        assert values(as_table([{"messages": cell, "note": "[x]", "gone": ""}], ",")) == [
            {"messages": CHAT, "note": "[x]"}
        ]


def test_a_broken_line_costs_itself_alone() -> None:
    data = b'{"user_message":\n' + as_lines(ROWS[1:]) + b'{"a": 1}\n}\n'
    texts = [text for _, text in lines_of(io.BytesIO(data), "rows")]
    assert texts == [b'{"user_message":', as_lines(ROWS[1:], "").strip(), b'{"a": 1}', b"}"]


def test_code_in_a_conversation_stays_as_it_is() -> None:
    data = b'USER: fix this\n{\n  "a": 1\n}\n[1,\n2]\n'
    assert [text for _, text in lines_of(io.BytesIO(data), "x.txt")] == data.splitlines()


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"PK\x03\x04rest", "x.xlsx", "x.xlsx: a zip archive or a spreadsheet; unpack it"),
        (b"PAR1rest", "x.parquet", "x.parquet: Parquet; pandas"),
        (b"\x28\xb5\x2f\xfdrest", "x.zst", "x.zst: compressed with zstd; `zstd -d` it"),
        ("hällo".encode("utf-16"), "x", "x: UTF-16 text; `iconv"),
        (b"x", "logs.tar.gz", "logs.tar.gz: an archive; unpack it"),
        (gzip.compress(as_lines(ROWS) * 9)[:-20], "x.gz", "x.gz: compressed, and cut or broken"),
        (b"BZh and then something else", "x.bz2", "x.bz2: compressed, and cut or broken"),
        (b'user_message,label\nbye,STORE\n"hi,STORE\nyes,STORE\n', "x.csv", "x.csv:3: not readable as a table"),
        (b'[\n {"user_message": "hi"},\n {"user_', "x.json", "x.json:3: a JSON array, cut or broken here"),
        (b'[\n {"user_message": "caf\xe9"}\n]', "x.json", "x.json:2: not UTF-8 text"),
        (b"text,label\nhi,STORE\n", "x.csv", "x.csv: a table without a column user_message (found: text, label); "),
        (b"user_message,label\ncaf\xe9,STORE\n", "x.csv", "x.csv:2: not UTF-8 text"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_in_one_line(data: bytes, name: str, message: str) -> None:
    with pytest.raises(ObserverError) as error:
        list(lines_of(io.BytesIO(data), name))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


PIECES = [*b'{ } [ ] , "a" : 1 {"a":1} USER:x user_message,b \xef\xbb\xbf'.split(), b"\n", b"\r", b" "]


@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_any_bytes_give_lines_or_one_error_and_no_text_is_lost(data: bytes) -> None:
    try:
        lines = list(lines_of(io.BytesIO(data), "x"))
    except ObserverError:
        return
    if data[:2] not in (b"\x1f\x8b", b"BZ") and b"user_message" not in data:
        kept = b"".join(text for _, text in lines)
        letters = {byte for byte in data.replace(b"\xef\xbb\xbf", b"") if byte not in b' \r\n\t,[]{}"\\'}
        assert letters <= set(kept) | set(b"u0123456789abcdef")
