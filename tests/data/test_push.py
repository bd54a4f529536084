"""`observer data push`: rows as Parquet that others load, and no repository without a card or without rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from observer.data.push import plan_push, with_files
from observer.errors import ObserverError
from observer.files import write_jsonl, write_text
from observer.paths import (
    ANNOTATIONS_JSONL,
    EVERYDAY_JSONL,
    EXTRACTION_JSONL,
    GRADING_JSONL,
    PERSONAL_JSONL,
    PROJECT_ROOT,
    VAL_JSONL,
)
from observer.schema import parse_row
from tests.support.hub_server import HubServer
from tests.support.tiny_runs import raw_rows

REPO = "me/rows"
RAW = [PROJECT_ROOT / path for path in (GRADING_JSONL, EXTRACTION_JSONL, EVERYDAY_JSONL, PERSONAL_JSONL)]


def test_shipped_rows_come_back_as_they_were_from_a_private_dataset(tmp_path: Path) -> None:
    """By the configurations that the card names, through datasets' own reader."""
    files = [*RAW, PROJECT_ROOT / VAL_JSONL, PROJECT_ROOT / ANNOTATIONS_JSONL]
    with HubServer("hf_token").running() as hub:
        command = [sys.executable, "-m", "observer.cli", "data", "push", *map(str, files), "--repo", REPO, "--yes"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=hub.environment)
        assert done.returncode == 0, done.stderr
        assert f"{REPO}: a new dataset repository, private" in done.stdout and "licence: cc-by-4.0" in done.stdout
        found = hub.repositories[REPO]
    assert found.is_private and found.kind == "dataset" and len(found.files) == len(files) + 1
    for name, content in found.files.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_bytes(content)
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        loaded = load_dataset(str(tmp_path / "repository"), file.stem, split="train", cache_dir=str(tmp_path / "cache"))
        back = loaded.to_list()
        assert len(back) == len(rows)
        if file in RAW:
            assert [parse_row(row) for row in back] == [parse_row(row) for row in rows]
        else:
            assert [without_nulls(row) for row in back] == [without_nulls(row) for row in rows]


def without_nulls(value: object) -> object:
    """Nulls and what is empty, which a table does not tell apart."""
    if isinstance(value, dict):
        kept = {key: without_nulls(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, {}, [])}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def test_a_field_of_the_last_row_alone_is_not_lost(tmp_path: Path) -> None:
    rows = [{"user_message": "hi"}, {"user_message": "hi", "unseen": "family"}, {"user_message": "hi", "names": {}}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_text(tmp_path / "README.md", "# Rows\n")
    plan = plan_push([tmp_path / "rows.jsonl"], None, tmp_path, REPO)
    (parquet,) = plan.files.values()
    loaded = load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["unseen"] for row in loaded.to_list()] == [None, "family", None]


def test_the_card_keeps_what_its_author_wrote() -> None:
    card = "---\nlicense: mit\nlanguage: [fr]\n---\n# Mine\n\ntext --- text\n"
    head = "license: mit\nlanguage:\n- fr\nconfigs:\n- config_name: rows\n  data_files: data/rows.parquet\n"
    assert with_files(card, ["rows"]) == f"---\n{head}---\n\n# Mine\n\ntext --- text\n"
    assert with_files(with_files(card, ["rows"]), ["rows"]) == with_files(card, ["rows"])
    assert with_files("# Mine\n", ["rows"]).endswith("data/rows.parquet\n---\n\n# Mine\n")


def test_what_would_end_empty_or_without_a_card_is_refused(tmp_path: Path) -> None:
    rows, empty = tmp_path / "rows.jsonl", tmp_path / "empty.jsonl"
    write_jsonl(rows, raw_rows(4))
    with pytest.raises(ObserverError, match=r"README\.md: no such card"):
        plan_push([rows], None, tmp_path, REPO)
    card = tmp_path / "card.md"
    write_text(card, "# Rows\n")
    assert plan_push([rows], card, tmp_path, REPO).files
    empty.touch()
    with pytest.raises(ObserverError, match="no rows"):
        plan_push([rows, empty], card, tmp_path, REPO)
    (tmp_path / "more").mkdir()
    write_jsonl(tmp_path / "more" / "rows.jsonl", raw_rows(4))
    with pytest.raises(ObserverError, match="a second file of this name"):
        plan_push([rows, tmp_path / "more" / "rows.jsonl"], card, tmp_path, REPO)
    for head in ("- a list", "license: [cc-by", "date: 2026-13-01"):
        write_text(card, f"---\n{head}\n---\n# Rows\n")
        with pytest.raises(ObserverError, match=rf"^{re.escape(str(card))}: its head"):
            plan_push([rows], card, tmp_path, REPO)
    write_jsonl(rows, [{"user_message": "hi", "names": 1}, {"user_message": "hi", "names": ["Ana"]}])
    with pytest.raises(ObserverError, match="a field is of several kinds"):
        plan_push([rows], card, tmp_path, REPO)
