"""Reads raw rows of this and of the first version, mixed, repairing what can be repaired.

Every line with something on it ends in `rows`, in both tasks where it has both, or in `quarantined`, or all its faults
are raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from observer.config import UnknownPredicates
from observer.data.raw_rows import RawRows, parse_line, raw_rows
from observer.data.repairs import repair_row
from observer.errors import ObserverError, raise_all
from observer.schema import RawRow
from observer.turns.conversation import Unusable
from observer.turns.file_formats import Line, lines_of_file
from observer.turns.row_fields import unused_fields

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


@dataclass(frozen=True)
class Imported:
    """What the files held; `repairs` counts changes by kind, in `n_repaired` of the rows, `unused` fields that we know
    nothing about."""

    rows: list[PlacedRow] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    n_repaired: int = 0
    unused: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """One line: rows, what was repaired in them, what was set aside."""
        counts = ", ".join(f"{count:,} {kind}" for kind, count in self.repairs.most_common())
        repaired = f"; {self.n_repaired:,} repaired ({counts})" if counts else ""
        quarantined = f"; {len(self.quarantined):,} quarantined" if self.quarantined else ""
        unused = f"; {unused_fields(self.unused)}" if self.unused else ""
        return f"{len(self.rows):,} rows{repaired}{quarantined}{unused}"


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
    imported, n_repaired = Imported(), 0
    for place, line in lines:
        try:
            found = raw_rows(parse_line(line))
            repaired = [repair_row(row, unknown_to_related=to_related) for row in found.rows]
            faults = list(dict.fromkeys(fault for one in repaired for fault in one.faults))
        except Unusable as error:
            found, repaired, faults = RawRows(), [], [str(error)]
        if faults:
            imported.quarantined.append(Quarantined(place, faults, line.decode("utf-8", "replace")))
            continue
        imported.rows.extend(PlacedRow(place, one.row) for one in repaired if one.row)
        imported.unused.update(found.unused)
        for one in repaired:
            imported.repairs.update(one.repairs)
            n_repaired += bool(one.repairs)
    return replace(imported, n_repaired=n_repaired)


def numbered_lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """`file:line` and the bytes of every line that is not blank. Raises ObserverError naming all unreadable files."""
    contents: list[tuple[Path, list[Line]]] = []
    faults: list[str] = []
    for path in paths:
        try:
            contents.append((path, lines_of_file(path)))
        except ObserverError as error:
            faults.append(str(error))
    raise_all(faults)
    for path, lines in contents:
        for number, text in lines:
            if text.strip():
                yield f"{path}:{number}", text
