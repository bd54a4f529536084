"""The audit of some files: every hard rule, every measure and both probes, as one value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from observer.data.audit.content import content
from observer.data.audit.findings import Finding
from observer.data.audit.leakage import leakage, parts_of
from observer.data.audit.measures import Measure, entity_type_counts, figure, measure, predicate_counts, slice_counts
from observer.data.audit.probes import LENGTH_LIMIT, Groups, Probe, run_probes
from observer.data.audit.rows import TRAIN, VAL, AuditRow, count_tokens, read_rows
from observer.data.synth.clauses import NAMED_SLICES
from observer.errors import raise_all
from observer.prompts import Task
from observer.turns.row_fields import unused_fields

MIN_SLICE_ROWS = 20


@dataclass(frozen=True)
class Audit:
    """What was found. `columns` are the rows by column of the report: the whole that is trained on, then the parts."""

    columns: dict[str, list[AuditRow]]
    findings: list[Finding]
    measured: dict[str, list[Measure]]
    slices: dict[str, dict[str, int]]
    predicates: dict[str, int]
    entity_types: dict[str, int]
    probes: list[Probe]
    groups: Groups
    max_length: int

    @property
    def whole(self) -> str:
        """The first column: train and val together, or all rows."""
        return next(iter(self.columns))

    @property
    def is_sound(self) -> bool:
        return not any(finding.is_broken for finding in self.findings)

    @property
    def warnings(self) -> list[str]:
        """What no hard rule forbids and should be looked at."""
        return [*_measure_warnings(self), *_slice_warnings(self), *_probe_warnings(self.probes)]


def run_audit(paths: Sequence[Path], tokenizer: Path, max_length: int, progress: Callable[[str], None]) -> Audit:
    """Audit the rows of all files together. Raises ObserverError when no row of any can be read."""
    progress("reading the rows")
    unused: Counter[str] = Counter()
    rows, faults = read_rows(paths, unused)
    if unused:
        progress(unused_fields(unused))
    if not rows:
        raise_all([*faults, f"{', '.join(map(str, paths))}: no row to audit; one JSON object a line is expected"])
    progress(f"counting the tokens of {len(rows):,} rows")
    rows = count_tokens(rows, tokenizer)
    progress("looking for leaks between the parts")
    findings = [*leakage(rows), *content(rows, faults, max_length)]
    columns = _columns(rows)
    whole = next(iter(columns.values()))
    known = [row for row in rows if row.part == TRAIN]
    progress("running the shortcut probes")
    probes, groups = run_probes(whole)
    return Audit(
        columns=columns,
        findings=findings,
        measured={name: measure(part, known, max_length) for name, part in columns.items()},
        slices=_slices(columns),
        predicates=dict(predicate_counts(whole).most_common()),
        entity_types=dict(entity_type_counts(whole).most_common()),
        probes=probes,
        groups=groups,
        max_length=max_length,
    )


def _columns(rows: Sequence[AuditRow]) -> dict[str, list[AuditRow]]:
    parts = parts_of(rows)
    whole = [row for row in rows if row.part in (TRAIN, VAL)]
    if not whole or len(parts) == 1:
        return {"all": list(rows)} | (parts if len(parts) > 1 else {})
    name = f"{TRAIN}+{VAL}" if {TRAIN, VAL} <= parts.keys() else whole[0].part
    return {name: whole} | parts


def _slices(columns: dict[str, list[AuditRow]]) -> dict[str, dict[str, int]]:
    """Slice -> rows of it by column and task, the named ones even where there are none."""
    counts = {
        f"{name}, {task}": slice_counts(rows, task)
        for name, rows in columns.items()
        for task in Task
        if any(row.task == task for row in rows)
    }
    names = sorted(NAMED_SLICES | {name for counted in counts.values() for name in counted})
    return {name: {column: counted[name] for column, counted in counts.items()} for name in names}


def _measure_warnings(audit: Audit) -> list[str]:
    return [
        f"{found.name}: {figure(found.value, found.unit)}, expected {found.bounds}"
        for found in audit.measured[audit.whole]
        if found.is_off
    ]


def _slice_warnings(audit: Audit) -> list[str]:
    columns = {f"{audit.whole}, {task}" for task in Task}
    return [
        f"slice {name}: {n} rows in {column}, expected at least {MIN_SLICE_ROWS}"
        for name, counts in audit.slices.items()
        for column, n in counts.items()
        if column in columns and n < MIN_SLICE_ROWS and name in NAMED_SLICES
    ]


def _probe_warnings(probes: Sequence[Probe]) -> list[str]:
    words, lengths = probes
    found = []
    if lengths.grouped is not None and lengths.grouped >= LENGTH_LIMIT:
        found.append(f"lengths only: macro-F1 {lengths.grouped:.2f} on unseen families, expected under {LENGTH_LIMIT}")
    if None not in (words.random, words.grouped) and words.grouped >= words.random:  # type: ignore[operator]
        found.append(f"bag of words: macro-F1 {words.grouped:.2f} on unseen families, no lower than under random folds")
    return found
