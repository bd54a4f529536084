"""The audit as a person reads it (Markdown tables, aligned for a terminal) and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from observer.data.audit.audit import Audit
from observer.data.audit.findings import FIRST_VERSION, MAX_EXAMPLES, Finding
from observer.data.audit.measures import EVENT_PREDICATES, NONE, figure
from observer.data.audit.probes import LENGTH_LIMIT, N_FOLDS, Probe
from observer.data.audit.similarity import DEFINITION

NOTES = (
    "Leaks are counted between train and every other part, over both tasks; without train, between every two parts. "
    "Identical means equal but for case and spaces; prompts are compared within a task.",
    DEFINITION,
    "Conflicting gold: one task, the same earlier turns and user turn, but another label, or another set of facts. "
    "Grounding: a name (`User` apart) or a time expression is a verbatim piece of the exchange.",
    "Entities are counted by gold, and on grading rows by the slice multi_entity. Ended or changed: a completed "
    f"relationship, {' and '.join(sorted(EVENT_PREDICATES))} apart. A row of several frames or families counts for "
    "each. Distinct-n: different word n-grams over all of them; quantiles are nearest-rank.",
    f"Probes: macro-F1 on the grading rows. Bag of words: TF-IDF of words and word pairs with logistic regression; "
    f"lengths only: characters and words of user turn and reply and the number of turns with gradient boosting. "
    f"Random: {N_FOLDS} stratified folds. Families: {N_FOLDS} stratified folds of whole groups, where rows that share "
    f"a family id, directly or through others, are one group. Lengths only should stay under {LENGTH_LIMIT} there, "
    "and bag of words should score lower there than at random.",
)


def to_markdown(audit: Audit, command: str) -> str:
    """The page; the same rows give the same bytes."""
    verdict = "Every hard rule holds." if audit.is_sound else "FAIL: a hard rule is broken."
    parts = [
        "# Data audit",
        f"`{command}` prints this page; `--markdown FILE` writes it, `--json FILE` adds examples with file and line. "
        "First version: the figures of the data this project began with.",
        f"**{verdict}**",
        "## Hard rules",
        table(["rule", "broken", "of", "share", "first version", "verdict"], [_finding_row(f) for f in audit.findings]),
        "## Measured",
        _measured(audit),
        "## Shortcut probes",
        table(["probe", "random", "families", "train to val"], [_probe_row(probe) for probe in audit.probes]),
        f"{audit.groups.n:,} groups of families; share of the largest: {figure(audit.groups.largest_share, 'share')}.",
        "## Slices",
        _slices(audit),
        "## Predicates and entity types",
        _counts("predicate", audit.predicates),
        _counts("entity type", audit.entity_types),
        "## Warnings",
        "\n".join(f"- {warning}" for warning in audit.warnings) or "None.",
        "## What the words mean",
        "\n\n".join(NOTES),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(audit: Audit, command: str) -> dict[str, Any]:
    """Unrounded figures, and up to five examples of each broken rule."""
    findings = {
        f.key: {"rule": f.rule, "count": f.count, "total": f.total, "share": f.share, "passed": not f.is_broken}
        | {"first_version": FIRST_VERSION.get(f.key), "examples": f.lines[:MAX_EXAMPLES]}
        for f in audit.findings
    }
    return {
        "command": command,
        "passed": audit.is_sound,
        "max_length": audit.max_length,
        "rows": {name: len(rows) for name, rows in audit.columns.items()},
        "hard_rules": findings,
        "measured": {
            of[0].key: {"name": of[0].name, "unit": of[0].unit, "expected": of[0].bounds}
            | {"values": dict(zip(audit.columns, (m.value for m in of), strict=True))}
            for of in zip(*audit.measured.values(), strict=True)
        },
        "probes": [asdict(probe) for probe in audit.probes],
        "family_groups": asdict(audit.groups),
        "slices": audit.slices,
        "predicates": audit.predicates,
        "entity_types": audit.entity_types,
        "warnings": audit.warnings,
        "definitions": list(NOTES),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; all but the first are right-aligned."""
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
             for row in (header, rule, *rows)]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _finding_row(found: Finding) -> list[str]:
    verdict = "FAIL" if found.is_broken else "pass" if found.total else NONE
    share = figure(found.share, "share")
    return [found.rule, f"{found.count:,}", f"{found.total:,}", share, found.reference, verdict]


def _measured(audit: Audit) -> str:
    header = ["measure", *audit.columns, "first version", "expected", "verdict"]
    rows = []
    for whole, *parts in zip(*audit.measured.values(), strict=True):
        verdict = "warn" if whole.is_off else "ok" if whole.bounds and whole.value is not None else ""
        figures = [figure(found.value, found.unit) for found in (whole, *parts)]
        rows.append([whole.name, *figures, FIRST_VERSION.get(whole.key, NONE), whole.bounds, verdict])
    return table(header, rows)


def _probe_row(probe: Probe) -> list[str]:
    return [probe.name, *(figure(value, "number") for value in (probe.random, probe.grouped, probe.train_to_val))]


def _slices(audit: Audit) -> str:
    columns = list(next(iter(audit.slices.values())))
    return table(["slice", *columns], [[name, *(f"{n:,}" for n in c.values())] for name, c in audit.slices.items()])


def _counts(name: str, counts: dict[str, int]) -> str:
    return table([name, "uses"], [[key, f"{n:,}"] for key, n in counts.items()]) if counts else ""
