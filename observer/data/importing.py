"""Reads raw rows of this and of the first version, mixed, repairing what can be repaired.

Every line with something on it ends in `rows`, in both tasks where it has both, or in `quarantined`, or all its faults
are raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from observer.config import UnknownPredicates
from observer.data.raw_rows import MAX_FAULTS_SHOWN, RawRows, Value, raw_rows, values_of_file
from observer.data.repairs import repair_row
from observer.errors import ObserverError, raise_all
from observer.schema import RawRow
from observer.turns.conversation import Unusable
from observer.turns.row_fields import unused_fields


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


@dataclass
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
    values: list[Iterator[Value]] = []
    unreadable: list[str] = []
    for path in paths:
        try:
            values.append(values_of_file(path))
        except ObserverError as error:
            unreadable.append(str(error))
    raise_all(unreadable)
    imported = sort_out(chain.from_iterable(values), to_related=unknown_predicates == "related")
    if unknown_predicates == "strict":
        faults = [f"{bad.place}: {reason}" for bad in imported.quarantined for reason in bad.reasons]
        raise_all(faults, limit=MAX_FAULTS_SHOWN)
    if not imported.rows and not imported.quarantined:
        raise ObserverError(f"{', '.join(map(str, paths))}: no rows; one JSON object a line is expected")
    return imported


def sort_out(values: Iterable[Value], *, to_related: bool) -> Imported:
    """The values of lines -> rows and quarantine."""
    imported = Imported()
    for value in values:
        try:
            found = raw_rows(value)
            repaired = [repair_row(row, unknown_to_related=to_related) for row in found.rows]
            faults = list(dict.fromkeys(fault for one in repaired for fault in one.faults))
        except Unusable as error:
            found, repaired, faults = RawRows(), [], [str(error)]
        if faults:
            imported.quarantined.append(Quarantined(value.place, faults, value.line.decode("utf-8", "replace")))
            continue
        imported.rows.extend(PlacedRow(value.place, one.row) for one in repaired if one.row)
        imported.unused.update(found.unused)
        for one in repaired:
            imported.repairs.update(one.repairs)
            imported.n_repaired += bool(one.repairs)
    return imported
