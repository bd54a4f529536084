"""Writes the shipped rows, and streams rows for the nano base. The same seed gives the same bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from observer.files import write_jsonl
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, TRAIN_JSONL, VAL_JSONL
from observer.prompts import Task, row_exchange, training_row
from observer.schema import ExtractionRow, GradingRow, Label, RawRow, Relationship
from observer.synth.pools import Names
from observer.synth.surface import Split
from observer.synth.verbalize import Exchange, Verbalizer

SEED = 42
GRADING_ROWS: dict[Split, dict[Label, int]] = {
    "train": {Label.DISCARD: 150, Label.STORE: 421, Label.IMPORTANT: 789},
    "val": {Label.DISCARD: 37, Label.STORE: 106, Label.IMPORTANT: 197},
}
"""1,700 rows, 11 / 31 / 58 % in each split."""
EXTRACTION_ROWS: dict[Split, int] = {"train": 1280, "val": 320}
EMPTY_SHARE = 0.125
UNSEEN_NAME_SHARE = 0.4


def shipped_rows(split: Split, seed: int = SEED) -> list[RawRow]:
    """The rows of one split: grading, then extraction; no two share a prompt."""
    seen: set[str] = set()
    rows: list[RawRow] = []
    labels = [label for label, count in GRADING_ROWS[split].items() for _ in range(count)]
    random.Random(f"{seed}/{split}/labels").shuffle(labels)
    for index, label in enumerate(labels):
        rows.append(_new_row(Task.GRADE, split, seed, index, seen, label))
    for index in range(EXTRACTION_ROWS[split]):
        rows.append(_new_row(Task.EXTRACT, split, seed, index, seen))
    return rows


def base_rows(seed: int = SEED) -> Iterator[RawRow]:
    """Rows without end for the nano base: no family and no name of theirs is in the shipped rows."""
    index = 0
    while True:
        rng = random.Random(f"{seed}/base/{index}")
        task = Task.GRADE if rng.random() < 0.35 else Task.EXTRACT
        empty = rng.random() < (0.25 if task is Task.GRADE else 0.15)
        yield _row(task, "base", seed, index, Verbalizer(rng, "base", "base").exchange(empty))
        index += 1


def write_shipped_data(out: Path, seed: int = SEED) -> None:
    """Write the four files of the shipped data below `out` (the folder that holds `data/`)."""
    rows = {split: shipped_rows(split, seed) for split in ("train", "val")}
    everything = rows["train"] + rows["val"]
    for path, kind in ((GRADING_JSONL, GradingRow), (EXTRACTION_JSONL, ExtractionRow)):
        write_jsonl(out / path, (_as_json(row) for row in everything if isinstance(row, kind)))
    for path, split in ((TRAIN_JSONL, "train"), (VAL_JSONL, "val")):
        shuffled = list(rows[split])
        random.Random(f"{seed}/{split}/order").shuffle(shuffled)
        write_jsonl(out / path, (training_row(row) for row in shuffled))


def _new_row(
    task: Task, split: Split, seed: int, index: int, seen: set[str], label: Label | None = None
) -> RawRow:  # fmt: skip
    """Draw until the row has the wanted label and a prompt not seen before."""
    rng = random.Random(f"{seed}/{split}/{task}/{index}")
    names: Names = "unseen" if split == "val" and rng.random() < UNSEEN_NAME_SHARE else "shared"
    empty = label is Label.DISCARD if label else rng.random() < EMPTY_SHARE
    while True:
        exchange = Verbalizer(rng, split, names).exchange(empty)
        row = _row(task, split, seed, index, exchange)
        if exchange.label == (label or exchange.label) and row_exchange(row) not in seen:
            seen.add(row_exchange(row))
            return row


def _row(task: Task, split: Split, seed: int, index: int, exchange: Exchange) -> RawRow:
    provenance = {
        "user_message": exchange.user_message,
        "assistant_message": exchange.assistant_message,
        "context": exchange.context,
        "id": f"{task}-{split}-{index:05d}",
        "source": f"synth/{split}",
        "family": "+".join(exchange.families),
        "frame": "+".join(exchange.frames),
        "seed": seed,
        "slices": exchange.slices,
    }
    if task is Task.EXTRACT:
        return ExtractionRow(**provenance, entities=exchange.entities, relationships=exchange.relationships)
    return GradingRow(**provenance, label=exchange.label, reasoning=_reasoning(exchange.relationships))


def _reasoning(relationships: list[Relationship]) -> str:
    if not relationships:
        return "States nothing durable about anyone."
    return "States " + ", ".join(f"{r.subject} {r.predicate} {r.object} ({r.temporal})" for r in relationships) + "."


def _as_json(row: RawRow) -> dict[str, object]:
    return row.model_dump(mode="json", exclude_none=True)
