"""Checks data files of either kind, raw rows or split rows, and sums up the sound ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observer.data.dataset import row_faults
from observer.data.raw_rows import CONVERSATION, Value, is_split_row, raw_rows, values_of_file
from observer.data.repairs import repair_row
from observer.errors import ObserverError, raise_all
from observer.schema import GradingRow, RawRow, parse_row
from observer.turns.conversation import Unusable
from observer.turns.row_fields import unused_fields

MAX_FAULTS_SHOWN = 1_000


@dataclass
class Found:
    """What one file holds: kinds of sound rows, faults of the others, and fields that are ignored."""

    kinds: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    n_importable: int = 0
    n_conversations: int = 0


def check_files(paths: Sequence[Path]) -> list[str]:
    """A line about each file. Raises ObserverError with every fault of all files, as `file:line: what`."""
    summaries: list[str] = []
    faults: list[str] = []
    for path in paths:
        try:
            summary, found = check_file(path)
        except ObserverError as error:  # missing or unreadable: the other files are still checked
            faults.append(str(error))
            continue
        faults += found
        summaries.append(f"{path}: {summary}")
    raise_all(faults, limit=MAX_FAULTS_SHOWN)
    return summaries


def check_file(path: Path) -> tuple[str, list[str]]:
    """What the sound rows of one file are, and every fault of the others. Raises ObserverError when unreadable."""
    found, values = Found(), [*values_of_file(path)]
    for value in values:
        _check_value(value, found)
    faults = found.faults
    if not values:
        faults.append(f"{path}: no rows; one JSON object a line is expected")
    if found.n_conversations:
        faults.append(
            f"{path}: {found.n_conversations:,} conversations, which have no labels yet: "
            f"`observer label {path} --task both --model NAME --out OUT.jsonl` makes rows of them"
        )
    if found.n_importable:
        faults.append(
            f"{path}: {found.n_importable:,} of these rows are of an older form that can be imported: run "
            f"`observer data split {path} --out DIR`, or name the file as data.utility or data.extraction in a config"
        )
    unused = f"; {unused_fields(found.unused)}" if found.unused else ""
    return _summarize(found.kinds) + unused, faults


def _check_value(given: Value, found: Found) -> None:
    if given.fault:
        found.faults.append(f"{given.place}: {given.fault}")
    elif is_split_row(given.value):
        faults = row_faults(given.value)
        found.faults += [f"{given.place}: {fault}" for fault in faults]
        found.kinds += [] if faults else [str(given.value["task"])]
    else:
        _check_raw(given, found)


def _check_raw(given: Value, found: Found) -> None:
    try:
        raw = raw_rows(given.value)
    except Unusable as error:
        if str(error) == CONVERSATION:
            found.n_conversations += 1
        else:
            found.faults.append(f"{given.place}: {error}")
        return
    found.unused.update(raw.unused)
    parsed = [parse_row({"assistant_message": ""} | row) for row in raw.rows]
    faults = list(dict.fromkeys(fault for _, faults in parsed for fault in faults))
    found.faults += [f"{given.place}: {fault}" for fault in faults]
    found.n_importable += bool(faults) and all(repair_row(row).row is not None for row in raw.rows)
    found.kinds += [_kind(row) for row, _ in parsed if row]


def _kind(row: RawRow) -> str:
    if isinstance(row, GradingRow):
        return str(row.label)
    return "extraction" if row.relationships or row.entities else "empty extraction"


def _summarize(kinds: Iterable[Any]) -> str:
    counts = Counter(str(kind) for kind in kinds)
    parts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    return f"{counts.total():,} rows ({parts})"
