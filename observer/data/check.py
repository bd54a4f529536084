"""Checks data files of either kind, raw rows or split rows, and sums up the sound ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from observer.data.dataset import row_faults
from observer.data.raw_rows import CONVERSATION, MAX_FAULTS_SHOWN, Value, is_split_row, raw_rows, values_of_file
from observer.data.repairs import repair_row
from observer.errors import ObserverError, raise_all
from observer.schema import GradingRow, RawRow, parse_row
from observer.turns.conversation import Unusable
from observer.turns.row_fields import unused_fields


@dataclass
class Found:
    """What one file holds: kinds of sound rows, and fields that are ignored."""

    kinds: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    n_importable: int = 0
    n_conversations: int = 0


def check_files(paths: Sequence[Path]) -> list[str]:
    """A line about each file. Raises ObserverError with every fault of all files, as `file:line: what`."""
    summaries: list[str] = []
    faults: list[str] = []
    for path in paths:
        try:
            summaries.append(f"{path}: {_check_file(path, faults)}")
        except ObserverError as error:  # missing or unreadable: the other files are still checked
            faults.append(str(error))
    raise_all(faults, limit=MAX_FAULTS_SHOWN)
    return summaries


def _check_file(path: Path, faults: list[str]) -> str:
    """What the sound rows of one file are; every fault of the others goes into `faults`."""
    found, values = Found(), [*values_of_file(path)]
    for value in values:
        faults += [f"{value.place}: {fault}" for fault in _check_value(value, found)]
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
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.kinds.items()))
    unused = f"; {unused_fields(found.unused)}" if found.unused else ""
    return f"{found.kinds.total():,} rows ({kinds}){unused}"


def _check_value(given: Value, found: Found) -> list[str]:
    """The faults of one value."""
    if is_split_row(given.value):
        faults = row_faults(given.value)
        found.kinds.update([] if faults else [str(given.value["task"])])
        return faults
    try:
        raw = raw_rows(given)
    except Unusable as error:
        if str(error) != CONVERSATION:
            return [str(error)]
        found.n_conversations += 1
        return []
    found.unused.update(raw.unused)
    parsed = [parse_row({"assistant_message": ""} | row) for row in raw.rows]
    found.kinds.update(_kind(row) for row, _ in parsed if row)
    faults = list(dict.fromkeys(fault for _, faults in parsed for fault in faults))
    found.n_importable += bool(faults) and all(repair_row(row).row is not None for row in raw.rows)
    return faults


def _kind(row: RawRow) -> str:
    if isinstance(row, GradingRow):
        return str(row.label)
    return "extraction" if row.relationships or row.entities else "empty extraction"
