"""Split files: sound rows pass, and every fault of a file is named in one pass, with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from observer.data.dataset import read_part, read_rows, read_split, row_faults
from observer.errors import ObserverError
from observer.files import write_jsonl
from tests.support.tiny_runs import raw_rows, split_rows

EXTRACT, GRADE = split_rows(2)


def answering(row: dict[str, Any], answer: str) -> dict[str, Any]:
    return row | {"completion": [{"role": "assistant", "content": answer}]}


def relating(predicate: str) -> dict[str, Any]:
    relation = {"subject": "User", "predicate": predicate, "object": "Ana", "temporal": "ongoing"}
    return answering(EXTRACT, json.dumps({"entities": [], "relationships": [relation]}))


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = split_rows(6)
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert read_split(tmp_path / "train.jsonl") == rows


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": [], "completion": []}, "task: missing"),
        (GRADE | {"colour": "red"}, "colour: unknown field"),
        (GRADE | {"task": "rank"}, "task: unknown value 'rank'; allowed: grade, extract"),
        (GRADE | {"task": "extract"}, "prompt: does not end with the line 'EXTRACT:' of task extract"),
        (
            GRADE | {"prompt": [{"role": "system", "content": "Grade it."}, GRADE["prompt"][1]]},
            "prompt: not our system prompt, but an older one or your own; `observer data split RAW --out DIR` writes",
        ),
        (GRADE | {"prompt": "hello"}, "prompt: messages of system and user are expected, found 'hello'"),
        (GRADE | {"completion": []}, "completion: messages of assistant are expected"),
        (answering(GRADE, ""), "completion.assistant: text is expected"),
        (answering(GRADE, "MAYBE"), "completion: unknown label 'MAYBE'; allowed: DISCARD, STORE, IMPORTANT"),
        (answering(GRADE, "STORE<|im_end|>"), "completion.assistant: holds control-token or unnormalized text"),
        (answering(EXTRACT, "{"), "completion: not JSON"),
        (answering(EXTRACT, "[]"), "completion: "),
        (answering(EXTRACT, '{"entities": [], "relationships": []}'), "completion: not our compact JSON"),
        (relating("KNOWS"), "completion: relationships.0.predicate: unknown value 'KNOWS'; allowed: HAS_NAME"),
        (relating("OWNS"), "completion: relationship endpoint 'User' is not among the entities"),
    ],
)
def test_a_faulty_row_is_refused_in_words(row: dict[str, Any], fault: str) -> None:
    assert any(found.startswith(fault) for found in row_faults(row)), row_faults(row)


def test_all_faults_of_a_file_come_in_one_pass_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(GRADE), "{broken", json.dumps(answering(GRADE, "MAYBE")), "", json.dumps(["a", "list"])]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ObserverError) as refused:
        read_split(path)
    faults = str(refused.value).splitlines()
    assert [fault.removeprefix(f"{path}:").partition(":")[0] for fault in faults] == ["2", "3", "5"]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "val.jsonl").write_text(text)
    with pytest.raises(ObserverError, match="no rows"):
        read_split(tmp_path / "val.jsonl")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ObserverError, match="no such file"):
        read_split(tmp_path / "none.jsonl")


BOTH = raw_rows(1)[0] | {"label": "IMPORTANT"}


def test_the_faults_of_a_row_of_both_tasks_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [BOTH | {"label": "KEEP", "slices": "red"}])
    with pytest.raises(ObserverError) as refused:
        read_rows(path)
    faults = str(refused.value).splitlines()
    assert len(faults) == 2 and "KEEP" in faults[0] + faults[1] and str(refused.value).count("slices") == 1


def test_a_part_of_raw_rows_is_what_their_source_says(tmp_path: Path) -> None:
    rows = [
        BOTH | {"id": "a", "source": "natural/train"},
        BOTH | {"id": "b", "source": "natural/val"},
        BOTH | {"id": "c"},
    ]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    assert [row["id"] for row in read_part(path, "train")] == ["a", "a", "c", "c"]
    assert [row["id"] for row in read_part(path, "val")] == ["b", "b"]
