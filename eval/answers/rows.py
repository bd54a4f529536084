"""The rows that are asked: which split holds them, and what a row's exchange, gold and family are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from observer.data.dataset import read_part, read_rows
from observer.paths import ATTACKS_JSONL, CHALLENGE_JSONL, EVERYDAY_JSONL, TRAIN_JSONL, VAL_JSONL
from observer.prompts import Task
from observer.schema import Extraction

Row = dict[str, Any]
ATTACKS = "attacks"
EVERYDAY = "everyday"
SPLITS = {"val": (VAL_JSONL,), "train": (TRAIN_JSONL,), "challenge": CHALLENGE_JSONL, ATTACKS: ATTACKS_JSONL}


def rows_of_split(split: str) -> list[Row]:
    """The rows of a named split, or of a file of raw or split rows; of everyday's the held-out part."""
    if split == EVERYDAY:
        return read_part(EVERYDAY_JSONL, "val")
    return [row for path in SPLITS.get(split, (Path(split),)) for row in read_rows(path)]


def of_task(rows: Sequence[Row], task: Task) -> list[Row]:
    return [row for row in rows if row["task"] == task]


def answer_of(row: Row) -> str:
    return row["completion"][0]["content"]


def extraction_of(row: Row) -> Extraction:
    return Extraction.model_validate_json(answer_of(row))


def families_of(rows: Sequence[Row]) -> list[str]:
    """What intervals resample by: the whole `family`, parts joined by `+` included; a row without one stands alone."""
    return [row.get("family") or f"row {row.get('id') or number}" for number, row in enumerate(rows)]


def names_in(row: Row, key: str) -> Sequence[str]:
    """Of the groups that `slices`, `unseen` or `origin` puts the row in."""
    value = row.get(key) or ()
    return (value,) if isinstance(value, str) else value


def take(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """At most `limit` rows of each task, evenly spread over the file; grading first, as saved answers have them."""
    chosen: list[Row] = []
    for task in Task:
        part = of_task(rows, task)
        chosen += [part[index] for index in spread(len(part), limit or len(part))]
    return chosen


def spread(n_rows: int, limit: int) -> list[int]:
    """At most `limit` indices, evenly spread over `n_rows`."""
    n = min(limit, n_rows)
    return [i * n_rows // n for i in range(n)]
