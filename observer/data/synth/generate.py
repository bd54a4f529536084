"""Streams generated rows of train and val, and those of the nano base. The same seed gives the same bytes.

The shipped files hold natural rows as well, which nobody generates: they are taken over as they stand there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from observer.data.importing import read_raw_rows
from observer.data.synth.bloom_filter import Seen
from observer.data.synth.pools import Names
from observer.data.synth.surface import Split
from observer.data.synth.verbalize import Exchange, Verbalizer
from observer.files import atomic_path, write_row
from observer.observation import Progress, no_progress
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL
from observer.prompts import Task, training_row
from observer.schema import ExtractionRow, GradingRow, Label, RawRow, Relationship

DATA_FILES = (GRADING_JSONL, EXTRACTION_JSONL, TRAIN_JSONL, VAL_JSONL)
SEED = 42
SHIPPED_ROWS = 3300
VAL_EVERY = 5
"""Every fifth row is a validation row."""
LABELS_OF_A_HUNDRED = {Label.DISCARD: 11, Label.STORE: 31, Label.IMPORTANT: 58}
EMPTY_SHARE = 0.125
UNSEEN_NAME_SHARE = 0.4
"""Of the validation rows; the others show names of train in wordings that train never shows."""


def stream_rows(n_rows: int = SHIPPED_ROWS, seed: int = SEED) -> Iterator[tuple[Split, RawRow]]:
    """`n_rows` rows with their split, in flat memory; no two share a prompt, no user turn is in both splits."""
    seen = Seen()
    counts: Counter[tuple[Split, Task]] = Counter()
    for number in range(n_rows):
        split: Split = "val" if number % VAL_EVERY == VAL_EVERY - 1 else "train"
        task = Task.GRADE if number % 2 else Task.EXTRACT
        yield split, _new_row(task, split, seed, counts[split, task], seen)
        counts[split, task] += 1


def natural_rows() -> list[tuple[Split, RawRow]]:
    """Those of the shipped raw files, in their order. Raises ObserverError when a file is missing or faulty."""
    placed = read_raw_rows([PROJECT_ROOT / path for path in (GRADING_JSONL, EXTRACTION_JSONL)]).rows
    return [(one.row.part, one.row) for one in placed if one.row.origin == "natural"]


def base_rows(seed: int = SEED) -> Iterator[RawRow]:
    """Rows without end for the nano base: no family and no name of theirs is in the shipped rows."""
    index = 0
    while True:
        rng = random.Random(f"{seed}/base/{index}")
        task = Task.GRADE if rng.random() < 0.35 else Task.EXTRACT
        empty = rng.random() < (0.25 if task is Task.GRADE else 0.15)
        yield _row(task, "base", "base", seed, index, Verbalizer(rng, "base", "base").exchange(empty))
        index += 1


def write_data(out: Path, n_rows: int = SHIPPED_ROWS, seed: int = SEED, progress: Progress = no_progress) -> None:
    """Write the four data files below `out` (the folder that holds `data/`), row by row; each appears whole.

    With the defaults they are the shipped ones, natural rows first; otherwise all rows are generated.
    """
    natural = natural_rows() if (n_rows, seed) == (SHIPPED_ROWS, SEED) else []
    rows = itertools.chain(natural, stream_rows(n_rows - len(natural), seed))
    with contextlib.ExitStack() as files:
        opened = {path: _open_for_rows(files, out / path) for path in DATA_FILES}
        for done, (split, row) in enumerate(rows, 1):
            raw = GRADING_JSONL if isinstance(row, GradingRow) else EXTRACTION_JSONL
            write_row(opened[raw], row.model_dump(mode="json", exclude_none=True))
            write_row(opened[TRAIN_JSONL if split == "train" else VAL_JSONL], training_row(row))
            progress(done, n_rows)


def _open_for_rows(files: contextlib.ExitStack, path: Path) -> TextIO:
    temporary = files.enter_context(atomic_path(path))
    return files.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))


def _new_row(task: Task, split: Split, seed: int, index: int, seen: Seen) -> RawRow:
    """Draw until the row has the wanted label and says what was not said before."""
    rng = random.Random(f"{seed}/{split}/{task}/{index}")
    names: Names = "unseen" if split == "val" and rng.random() < UNSEEN_NAME_SHARE else "shared"
    label = _label(split, seed, index) if task is Task.GRADE else None
    empty = label is Label.DISCARD if label else rng.random() < EMPTY_SHARE
    while True:
        exchange = Verbalizer(rng, split, names, only_store=label is Label.STORE).exchange(empty)
        if exchange.label == (label or exchange.label):
            row = _row(task, split, names, seed, index, exchange)
            if seen.is_new(row, split):
                return row


@functools.lru_cache(maxsize=2)
def _labels(split: Split, seed: int, block: int) -> list[Label]:
    labels = [label for label, count in LABELS_OF_A_HUNDRED.items() for _ in range(count)]
    random.Random(f"{seed}/{split}/labels/{block}").shuffle(labels)
    return labels


def _label(split: Split, seed: int, index: int) -> Label:
    """The label of a split's index-th grading row: every hundred of them have the promised shares."""
    return _labels(split, seed, index // 100)[index % 100]


def _row(task: Task, split: Split, names: Names, seed: int, index: int, exchange: Exchange) -> RawRow:
    provenance = {
        "user_message": exchange.user_message,
        "assistant_message": exchange.assistant_message,
        "context": exchange.context,
        "id": f"{task}-{split}-{index:05d}",
        "source": f"synth/{split}",
        "origin": "generated",
        "family": "+".join(exchange.families),
        "frame": "+".join(exchange.frames),
        "seed": seed,
        "slices": exchange.slices,
        "names": exchange.names,
    }
    if split == "val":
        provenance["unseen"] = "family+name" if names == "unseen" and exchange.names else "family"
    if task is Task.EXTRACT:
        return ExtractionRow(**provenance, entities=exchange.entities, relationships=exchange.relationships)
    return GradingRow(**provenance, label=exchange.label, reasoning=_reasoning(exchange.relationships))


def _reasoning(relationships: list[Relationship]) -> str:
    if not relationships:
        return "States nothing durable about anyone."
    return "States " + ", ".join(f"{r.subject} {r.predicate} {r.object} ({r.temporal})" for r in relationships) + "."
