"""A comparison as a person reads it: the table of verdicts, then the rows on which a model loses most."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.answers.origin import STAND_IN_NOTE, ModelInfo
from eval.reports.comparison import Comparison, Test
from eval.reports.row_differences import RowDifference, worst
from eval.reports.tables import page, table
from observer.files import write_json, write_jsonl, write_text

N_WORST = 10


@dataclass(frozen=True)
class Origin:
    """Where a comparison came from. `environment`: package versions and the git commit; `answers`: file by model."""

    command: str
    date: str
    environment: dict[str, Any]
    answers: dict[str, str]


def write_comparisons(comparisons: Sequence[Comparison], origin: Origin, stem: Path) -> list[Path]:
    """Write `STEM.json`, `STEM.md` and `STEM.differences.jsonl`, a line for each differing row; return the paths."""
    paths = [stem.with_name(stem.name + suffix) for suffix in (".json", ".md", ".differences.jsonl")]
    write_json(paths[0], asdict(origin) | {"comparisons": [comparison.to_json() for comparison in comparisons]})
    write_text(paths[1], to_markdown(comparisons, origin))
    write_jsonl(paths[2], _difference_lines(comparisons), is_private=True)
    return paths


def to_markdown(comparisons: Sequence[Comparison], origin: Origin) -> str:
    first = comparisons[0]
    is_stand_in = any(model.is_stand_in for c in comparisons for model in (c.reference, c.model))
    packages = origin.environment["packages"]
    facts = [
        f"reference: {_model_line(first.reference, origin)}",
        *(f"model: {_model_line(comparison.model, origin)}" for comparison in comparisons),
        f"data: `{first.split}`, {first.n_grade:,} grading and {first.n_extract:,} extraction rows",
        f"date: {origin.date}",
        f"versions: llama-cpp-python {packages['llama-cpp-python']}, commit {origin.environment['git_commit']}",
        f"reproduce: `{origin.command}`",
    ]
    title = f"{first.reference.path} against {', '.join(c.model.path for c in comparisons)}"
    parts = ["\n".join(f"- {fact}" for fact in facts), verdict_table(comparisons), _READING]
    stand_in = f"> {STAND_IN_NOTE}" if is_stand_in else ""
    return page(title, stand_in, *parts, *(_losses(comparison) for comparison in comparisons))


def _model_line(model: ModelInfo, origin: Origin) -> str:
    size = f", {model.size_bytes / 1e6:,.1f} MB" if model.size_bytes else ""
    server = f", {model.served_by}" if model.served_by else ""
    return f"`{model.path}` ({model.name}, {model.file_type}{size}{server}), answers in `{origin.answers[model.path]}`"


_READING = (
    "`difference` is model - reference, its interval a 95 % bootstrap that resamples families. `p` is McNemar's exact "
    "test for accuracy, which takes rows as independent, and the paired bootstrap's by family for the others, all "
    "corrected by Holm over this table; `better` and `worse` need it below 0.05. `no evidence` says that these rows "
    "cannot tell, not that the models are equal: the interval bounds how different they may be."
)


def verdict_table(comparisons: Sequence[Comparison]) -> str:
    """One Markdown row a test, aligned for a terminal too."""
    header = ["model", "measure", "reference", "model's", "difference [95 %]", "p, corrected", "verdict"]
    rows = [[c.model.path, *_cells(test)] for c in comparisons for test in c.tests]
    return table(header, rows)


def _cells(test: Test) -> list[str]:
    interval = f"[{test.interval.low:+.3f}, {test.interval.high:+.3f}]"
    scores = [f"{test.reference:.3f}", f"{test.model:.3f}"]
    return [test.measure, *scores, f"{test.difference:+.3f} {interval}", test.p_text, test.verdict]


def _losses(comparison: Comparison) -> str:
    differences = comparison.differences
    n_lost, n_won = (sum(sign * d.gain > 0 for d in differences) for sign in (-1, 1))
    text = (
        f"## Rows that {comparison.model.path} answers differently\n\n{len(differences):,} of "
        f"{comparison.n_grade + comparison.n_extract:,}: {n_won:,} nearer to gold, {n_lost:,} farther from it."
    )
    shown = worst(differences, N_WORST)
    if shown:
        text += f" The {len(shown)} largest losses:"
    return "\n\n".join([text, *map(_side_by_side, shown)])


def _side_by_side(difference: RowDifference) -> str:
    slices = f", {' '.join(difference.slices)}" if difference.slices else ""
    title = f"**{difference.id or difference.task}**{slices}, {difference.gain:+.2f}"
    answers = [f"{name:<10}{getattr(difference, name)}" for name in ("gold", "reference", "model")]
    body = "\n".join([difference.exchange, "", *answers])
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{title}\n\n{fence}text\n{body}\n{fence}"


def _difference_lines(comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    for comparison in comparisons:
        for difference in comparison.differences:
            line = {"reference_model": comparison.reference.path, "compared_model": comparison.model.path}
            yield line | asdict(difference)
