"""Every command reads the same rows from a file, in whatever form it comes, and counts the same fields as not used."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from observer.cli import main
from observer.data.audit.rows import read_rows as read_audit_rows
from observer.data.check import check_files
from observer.data.dataset import read_rows
from observer.data.importing import read_raw_rows
from observer.observe.reading import Reader, Row
from observer.prompts import exchange_of
from observer.turns.inputs import read_inputs

TEA: dict[str, Any] = {"user_message": "I like tea", "assistant_message": "ok", "label": "STORE"}
JAZZ: dict[str, Any] = {
    "user_message": "I like jazz",
    "assistant_message": "ok",
    "entities": [{"name": "User", "type": "Person"}, {"name": "jazz", "type": "Concept"}],
    "relationships": [{"subject": "User", "predicate": "LIKES", "object": "jazz", "temporal": "ongoing"}],
}
NULL = dict.fromkeys(["label", "reasoning", "confidence", "entities", "relationships", "context", "id", "family"])


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(*rows: dict[str, Any]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(
        {key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()} for row in rows
    )
    return stream.getvalue().encode()


NO_REPLY = {"user_message": "I like tea", "label": "STORE"}
SYSTEM = [{"role": "system", "content": "You help."}, {"role": "Human", "content": "hi"}]
FILES: dict[str, tuple[str, bytes]] = {
    "as they are": ("rows.jsonl", lines(TEA, JAZZ)),
    "null columns": ("rows.jsonl", lines(NULL | TEA, NULL | JAZZ)),
    "a time": ("rows.jsonl", lines(TEA | {"at": "2026-01-01"}, JAZZ | {"at": None})),
    "fields of others": ("rows.jsonl", lines(TEA | {"mood": 1, "stamp": 2}, JAZZ | {"mood": None})),
    "a reason without a label": ("rows.jsonl", lines(TEA, JAZZ | {"reasoning": "taste"})),
    "ids that are numbers": ("rows.jsonl", lines(TEA | {"id": 1}, JAZZ | {"id": 2.0})),
    "a system turn": ("rows.jsonl", lines(TEA | {"context": SYSTEM}, JAZZ)),
    "no reply": ("rows.jsonl", lines(NO_REPLY, JAZZ | {"assistant_message": None})),
    "an array": ("rows.json", json.dumps([TEA, JAZZ], indent=2).encode()),
    "gzip": ("rows.jsonl.gz", gzip.compress(lines(TEA, JAZZ))),
    "a table": ("rows.csv", table(TEA, JAZZ)),
    "CR": ("rows.jsonl", lines(TEA, JAZZ).replace(b"\n", b"\r")),
    "two marks": ("rows.jsonl", b"\xef\xbb\xbf" + lines(TEA) + b"\xef\xbb\xbf" + lines(JAZZ)),
}  # fmt: skip
UNUSED = {"fields of others": {"mood": 1, "stamp": 1}, "a reason without a label": {"reasoning": 1}}


@pytest.mark.parametrize("kind", FILES)
def test_every_command_reads_the_same_rows(kind: str, tmp_path: Path) -> None:
    name, content = FILES[kind]
    path = tmp_path / name
    path.write_bytes(content)
    unused = Counter(UNUSED.get(kind, {}))
    note = "; fields not used: " + ", ".join(f"{key} (1)" for key in unused) if unused else ""
    assert check_files([path]) == [f"{path}: 2 rows (1 STORE, 1 extraction){note}"]

    imported = read_raw_rows([path])
    assert [placed.row.user_message for placed in imported.rows] == ["I like tea", "I like jazz"]
    assert imported.unused == unused
    assert note in imported.summary()

    counted: Counter[str] = Counter()
    audited, faults = read_audit_rows([path], counted)
    assert ([row.user_turn for row in audited], faults, counted) == (["I like tea", "I like jazz"], [], unused)
    assert [row["task"] for row in read_rows(path)] == ["grade", "extract"]

    inputs = read_inputs(content, str(path))
    assert [item.fields["user_message"] for item in inputs.items] == ["I like tea", "I like jazz"]
    assert (inputs.unreadable, inputs.unused_fields) == ([], unused - Counter(["reasoning"]))
    rows = [row for row in Reader([str(path)]).rows() if isinstance(row, Row)]
    assert [row.exchange.user_message for row in rows] == ["I like tea", "I like jazz"]
    contexts = [[turn.content for turn in row.exchange.context] for row in rows]
    assert contexts == [["hi"] if kind == "a system turn" else [], []]


def test_a_row_of_both_tasks_gives_both_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(JAZZ | {"label": "STORE", "reasoning": "taste", "confidence": 0.5, "id": 7}))
    assert check_files([path]) == [f"{path}: 2 rows (1 STORE, 1 extraction)"]
    assert [row["task"] for row in read_rows(path)] == ["grade", "extract"]
    assert {exchange_of(row) for row in read_rows(path)} == {"USER: I like jazz\nASSISTANT: ok"}
    rows = [placed.row.model_dump(exclude_unset=True) for placed in read_raw_rows([path]).rows]
    assert [row.get("reasoning") for row in rows] == ["taste", None]
    assert [(row["id"], row["confidence"]) for row in rows] == [("7", 0.5)] * 2
    assert len(read_audit_rows([path], Counter())[0]) == 2


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"conversations": [{"from": "human", "value": "hi"}]},
        [{"role": "user", "content": "hi"}],
    ],
)
def test_a_conversation_is_sent_to_where_it_gets_its_labels(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(value) + "\n" + json.dumps(value) + "\n")
    assert main(["data", "check", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {path}: 2 conversations, which have no labels yet: "
        f"`observer label {path} --task both --model NAME --out OUT.jsonl` makes rows of them\n"
    )
    assert main(["data", "split", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "a conversation, which has no labels yet; `observer label`" in capsys.readouterr().err
    assert [item.fields["user_message"] for item in read_inputs(path.read_bytes(), "x").items] == ["hi", "hi"]
