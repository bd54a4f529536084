"""Checks data files of either kind, raw rows or split rows, and sums up the sound ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from observer.data.dataset import scan_split
from observer.data.repairs import repair_row
from observer.errors import ObserverError, raise_all
from observer.files import scan_jsonl
from observer.schema import GradingRow, RawRow, parse_row

MAX_FAULTS_SHOWN = 1_000


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
    """What the sound rows of one file are, and every fault of the others."""
    rows, faults = scan_jsonl(path)
    if any("prompt" in row or "completion" in row for _, row in rows):
        split_rows, faults = scan_split(path)
        return _summarize(row["task"] for _, row in split_rows), faults
    if not rows and not faults:
        return "", [f"{path}: no rows; one JSON object a line is expected"]
    kinds: list[str] = []
    n_importable = 0
    for number, value in rows:
        row, found = parse_row(value)
        faults += [f"{path}:{number}: {fault}" for fault in found]
        n_importable += bool(found) and repair_row(value).row is not None
        if row:
            kinds.append(_kind(row))
    if n_importable:
        faults.append(
            f"{path}: {n_importable:,} of these rows are of an older form that can be imported: run "
            f"`observer data split {path} --out DIR`, or name the file as data.utility or data.extraction in a config"
        )
    return _summarize(kinds), faults


def _kind(row: RawRow) -> str:
    if isinstance(row, GradingRow):
        return str(row.label)
    return "extraction" if row.relationships or row.entities else "empty extraction"


def _summarize(kinds: Iterable[Any]) -> str:
    counts = Counter(str(kind) for kind in kinds)
    parts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    return f"{counts.total():,} rows ({parts})"
