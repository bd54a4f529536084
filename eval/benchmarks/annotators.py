"""How far the two annotators of the natural rows agree, before anybody decided between them.

Reads data/annotations.jsonl: what the writer of a row said of it, what a second annotator said who saw the text and the
guideline alone, and, where they differ, whose answer was taken and by which rule of the guideline.

    python -m eval.benchmarks.annotators            # writes docs/data-agreement.md
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics.row_counts import Level, f1_of, triple_counts
from eval.metrics.significance import bootstrap_interval
from eval.reports.tables import page, show, table
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import read_jsonl, write_text
from observer.labeling.compare import cohens_kappa, confusion
from observer.paths import ANNOTATIONS_JSONL
from observer.schema import Extraction, Label

PAGE = Path("docs/data-agreement.md")
LEVELS: dict[str, Level] = {"triples": "triple", "triples with temporal": "temporal", "triples with `when`": "when"}
SMALLEST_GROUP = 20
"""Rows; a figure of fewer says nothing."""


@dataclass(frozen=True)
class Annotated:
    """A row's id, groups and two answers; `decided` and `rule` are empty where the annotators agree in everything."""

    id: str
    groups: tuple[str, ...]
    labels: tuple[str, str]
    extractions: tuple[Extraction, Extraction]
    decided: str
    rule: str

    @property
    def family(self) -> str:
        return self.id.rpartition("-")[0]


def read_annotations(path: Path) -> list[Annotated]:
    """Raises ObserverError when the file is missing or a line is none of ours."""
    rows = []
    for number, value in read_jsonl(path):
        try:
            first = value["first"]
            second = value.get("second") or first
            one, other = (
                Extraction.model_validate({k: a[k] for k in Extraction.model_fields}) for a in (first, second)
            )
            labels = str(Label(first["label"])), str(Label(second["label"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ObserverError(f"{path}:{number}: not two annotations of a row ({error}); restore the file") from error
        groups = (
            f"writer {value['id'].split('-')[1]}",
            "English" if value["language"] == "en" else "other languages",
            *(f"{key} {value[key]}" for key in ("stated", "manner")),
            *(f"slice {name}" for name in value["slices"]),
        )
        rows.append(Annotated(value["id"], groups, labels, (one, other),
                              value.get("decided", ""), value.get("rule", "")))  # fmt: skip
    return rows


def triple_f1(rows: Sequence[Annotated], level: Level = "triple") -> float:
    """Between the annotators: the same whichever of them is taken for gold."""
    return float(f1_of(_counts(rows, level).sum(0)))


def to_markdown(rows: Sequence[Annotated]) -> str:
    """The whole page in Markdown."""
    families = [row.family for row in rows]
    whole = [
        [f"F1 of {name}", show(triple_f1(rows, level), bootstrap_interval(_counts(rows, level), f1_of, families))]
        for name, level in LEVELS.items()
    ]
    differ = [row for row in rows if row.decided]
    taken = Counter(row.decided for row in differ)
    matrix = confusion([row.labels for row in rows])
    return page(
        "Agreement between annotators",
        "Every natural row has two answers: that of its writer, and that of a second annotator who saw the text "
        "and [the guideline](../data/guideline.md) alone. All figures are from before adjudication.\n\n"
        "> Writers, annotators and adjudicators are one AI model, each blind to what the others wrote. They share "
        "its habits, so people would agree less. No person has labelled these rows.",
        table(["of all rows", "value"], [
            ["rows", f"{len(rows):,}"],
            ["labels: Cohen's kappa", f"{cohens_kappa([row.labels for row in rows]):.3f}"],
            ["labels that agree", f"{_share_agreeing(rows):.3f}"],
            *whole,
            ["rows that differ in anything", f"{len(differ):,}"],
        ]),
        "95 % intervals by family, which is a scenario of one writer.",
        "## Labels",
        table(["writer, then second annotator", *map(str, Label)],
              [[gold, *map(str, counts.values())] for gold, counts in matrix.items()]),
        "## By group of rows",
        f"Groups of at least {SMALLEST_GROUP} rows.",
        table(["rows of", "n", "labels that agree", "F1 of triples"], _groups(rows)),
        "## What was decided",
        f"Of {len(differ):,} rows on which the two differ somewhere, the writer's answer was taken "
        f"{taken['first']:,} times, the second's {taken['second']:,} times, and one of the adjudicator's own "
        f"{taken['own']:,} times. "
        "The rules of the guideline that decided most often:",
        table(["rule", "rows"], [[rule, str(n)] for rule, n in _rules(differ).most_common(15)]),
        "## Labels on which they differ",
        table(["row", "writer", "second", "taken", "rule"],
              [[row.id, *row.labels, row.decided, row.rule] for row in differ if row.labels[0] != row.labels[1]]),
        "The other differences, with both answers in full, are in `data/annotations.jsonl`. "
        "Reproduce this page: `python -m eval.benchmarks.annotators`.",
    )  # fmt: skip


def _counts(rows: Sequence[Annotated], level: Level) -> Any:
    first, second = zip(*(row.extractions for row in rows), strict=True)
    return triple_counts(first, [extraction.to_compact_json() for extraction in second], level)


def _share_agreeing(rows: Sequence[Annotated]) -> float:
    return sum(one == other for one, other in (row.labels for row in rows)) / len(rows)


def _groups(rows: Sequence[Annotated]) -> list[list[str]]:
    names = sorted({name for row in rows for name in row.groups})
    lines = []
    for name in names:
        members = [row for row in rows if name in row.groups]
        if len(members) >= SMALLEST_GROUP:
            lines.append([name, str(len(members)), f"{_share_agreeing(members):.3f}", f"{triple_f1(members):.3f}"])
    return lines


def _rules(rows: Sequence[Annotated]) -> Counter[str]:
    return Counter(rule for row in rows for rule in re.findall(r"case \d+|\d+", row.rule))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, default=PAGE, metavar="FILE.md",
        help="where to write (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(arguments)
    write_text(args.markdown, to_markdown(read_annotations(ANNOTATIONS_JSONL)))
    print(args.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
