"""Reads raw rows of this and of the first version, mixed, repairing what can be repaired.

Every line with something on it ends in `rows` or in `quarantined`, or all its faults are raised.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observer.config import UnknownPredicates
from observer.data.repairs import repair_row
from observer.errors import ObserverError, raise_all
from observer.files import explain_os_error, parse_json
from observer.schema import RawRow

MAX_FAULTS_SHOWN = 1_000


@dataclass(frozen=True)
class PlacedRow:
    """A row and where it was read, as `file:line`."""

    place: str
    row: RawRow


@dataclass(frozen=True)
class Quarantined:
    """A line that is no row: its text as it stands (bytes that are not UTF-8 replaced) and why."""

    place: str
    reasons: list[str]
    line: str

    def to_json(self) -> dict[str, Any]:
        return {"place": self.place, "reasons": self.reasons, "line": self.line}


@dataclass(frozen=True)
class Imported:
    """What the files held; `repairs` counts changes by kind, in `n_repaired` of the rows."""

    rows: list[PlacedRow]
    quarantined: list[Quarantined]
    repairs: Counter[str]
    n_repaired: int

    def summary(self) -> str:
        """One line: rows, what was repaired in them, what was set aside."""
        counts = ", ".join(f"{count:,} {kind}" for kind, count in self.repairs.most_common())
        repaired = f"; {self.n_repaired:,} repaired ({counts})" if counts else ""
        quarantined = f"; {len(self.quarantined):,} quarantined" if self.quarantined else ""
        return f"{len(self.rows):,} rows{repaired}{quarantined}"


def read_raw_rows(paths: Sequence[Path], unknown_predicates: UnknownPredicates = "strict") -> Imported:
    """Read and repair. `strict` raises ObserverError with every fault of all files; the others set rows aside."""
    imported = sort_out(numbered_lines(paths), to_related=unknown_predicates == "related")
    if unknown_predicates == "strict":
        faults = [f"{bad.place}: {reason}" for bad in imported.quarantined for reason in bad.reasons]
        raise_all(faults, limit=MAX_FAULTS_SHOWN)
    if not imported.rows and not imported.quarantined:
        raise ObserverError(f"{', '.join(map(str, paths))}: no rows; one JSON object a line is expected")
    return imported


def sort_out(lines: Iterable[tuple[str, bytes]], *, to_related: bool) -> Imported:
    """Lines with their places -> rows and quarantine."""
    imported = Imported([], [], Counter(), 0)
    n_repaired = 0
    for place, line in lines:
        row, repairs, reasons = read_line(line, to_related=to_related)
        if row is None:
            imported.quarantined.append(Quarantined(place, reasons, line.decode("utf-8", "replace")))
            continue
        imported.rows.append(PlacedRow(place, row))
        imported.repairs.update(repairs)
        n_repaired += bool(repairs)
    return Imported(imported.rows, imported.quarantined, imported.repairs, n_repaired)


def read_line(line: bytes, *, to_related: bool) -> tuple[RawRow | None, Counter[str], list[str]]:
    """One line as a row, its repairs, its faults."""
    try:
        value = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, Counter(), ["not UTF-8 text; save the file as UTF-8"]
    except json.JSONDecodeError as error:
        return None, Counter(), [f"not JSON ({error.msg}); one object a line is expected"]
    if not isinstance(value, dict):
        return None, Counter(), [f"found a {type(value).__name__}; one JSON object a line is expected"]
    repaired = repair_row(value, unknown_to_related=to_related)
    return repaired.row, repaired.repairs, repaired.faults


def numbered_lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """`file:line` and the bytes of every line that is not blank. Raises ObserverError naming all unreadable files."""
    contents: list[tuple[Path, bytes]] = []
    faults: list[str] = []
    for path in paths:
        try:
            contents.append((path, path.read_bytes().removeprefix(b"\xef\xbb\xbf")))
        except OSError as error:
            faults.append(explain_os_error(error, path))
    raise_all(faults)
    for path, content in contents:
        for number, line in enumerate(content.split(b"\n"), 1):
            if line.strip():
                yield f"{path}:{number}", line.rstrip(b"\r")
