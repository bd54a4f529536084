"""The page's sections below its table of files: figures as words, row by row, ready for the template to escape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eval.quantizations.plots import ReliabilityPoint, reliability_figure, to_svg
from eval.quantizations.report import COSTS, RATES, Benchmark, FileResult
from eval.reports.row_differences import worst
from observer.prompts import Task
from observer.schema import Label

if TYPE_CHECKING:
    from eval.metrics.significance import Interval
    from eval.metrics.spread import Spread
    from eval.quantizations.report import SpeedSummary
    from eval.reports.evaluation_report import GroupScores
    from eval.reports.row_differences import RowDifference

N_EXAMPLES = 6
NOTHING = {"value": None, "interval": "", "share": 0}
"""An empty cell."""
RATE_TITLES = dict(
    zip(RATES, ("read, tokens/s", "written, tokens/s", "graded, rows/s", "extracted, rows/s"), strict=True)
)
COST_TITLES = dict(zip(COSTS, ("first token, ms", "load, s", "peak memory, MB"), strict=True))
SCORE_COLUMNS = {
    "macro_f1": "macro-F1", "quadratic_kappa": "kappa", "mean_cost": "cost a row", "ece": "calibration error",
    "entity_f1": "entity F1", "triple_f1": "triple F1", "triple_f1_when": "triple F1 with time words",
    "hallucination_rate": "names not in the text", "correct_empty_rate": "rightly empty",
    "truncation_rate": "cut at the limit",
}  # fmt: skip
QUALITY_COLUMNS = {
    "mean_kld": "mean KLD", "kld_p50": "median", "kld_p90": "90 %", "kld_p99": "99 %", "kld_p99_9": "99.9 %",
    "max_kld": "max", "same_top_p": "same top p", "ppl": "PPL(Q)", "ppl_ratio": "PPL(Q) / PPL(base)",
    "rms_delta_p": "RMS Δp",
}  # fmt: skip


def sections_of(benchmark: Benchmark) -> dict[str, Any]:
    """What the template shows below the figures of size."""
    return {
        "score_columns": [*SCORE_COLUMNS.values(), "valid JSON without grammar"],
        "score_rows": [_scores_row(benchmark, file) for file in benchmark.files],
        "speed_columns": [*RATE_TITLES.values(), *COST_TITLES.values()],
        "speed_rows": [_speed_row(benchmark, file) for file in benchmark.files if file.speed],
        "speed_note": "Medians over rounds in which the files took turns; × is the median ratio to the reference in "
        "the same round. On a shared machine trust the ratios.",
        "quality_columns": list(QUALITY_COLUMNS.values()),
        "quality_rows": [_quality_row(benchmark, file) for file in benchmark.files[1:]],
        "labels": [str(label) for label in Label],
        "matrices": _matrices(benchmark),
        "reliability": _reliability(benchmark),
        "slice_files": [file.name for file in benchmark.pair],
        "slices": _slice_rows(benchmark),
        "slice_note": "A row may be in several or none. Few rows say little: mind the counts.",
        "examples": _example_groups(benchmark),
    }


def _scores_row(benchmark: Benchmark, file: FileResult) -> dict[str, Any]:
    """What the rule does not look at, task by task."""
    parts = [scores for scores in (file.report.grading, file.report.extraction) if scores]
    cells = []
    for name in SCORE_COLUMNS:
        scores = next((part for part in parts if hasattr(part, name)), None)
        cells.append(_plain_cell(scores and getattr(scores, name), scores and scores.intervals.get(name)))
    free = file.report.unconstrained
    cells.append(_plain_cell(free and free.json_validity, free and free.intervals.get("json_validity")))
    return {"name": file.name, "is_chosen": file is benchmark.recommended, "cells": cells}


def _plain_cell(value: float | None, interval: Interval | None) -> dict[str, Any]:
    if value is None:
        return NOTHING
    text = f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
    return {"value": f"{value:.3f}", "interval": text, "share": ""}


def svg_figure(figure: Any, title: str, description: str, caption: str) -> dict[str, Any]:
    from markupsafe import Markup

    return {"svg": Markup(to_svg(figure, title, description)), "caption": caption}


def _speed_row(benchmark: Benchmark, file: FileResult) -> dict[str, Any]:
    assert file.speed
    speeds = [other.speed for other in benchmark.files if other.speed]
    cells = []
    for name in (*RATES, *COSTS):
        found = file.speed.figures.get(name)
        largest = max((speed.figures[name].median for speed in speeds if name in speed.figures), default=0)
        cells.append(_speed_cell(name, found, largest, file.speed))
    return {"name": file.name, "is_chosen": file is benchmark.recommended, "cells": cells}


def _speed_cell(name: str, found: Spread | None, largest: float, speed: SpeedSummary) -> dict[str, Any]:
    if found is None:
        return NOTHING
    value = found.median / 1e6 if name == "peak_bytes" else found.median
    text = f"{value:,.2f}" if name == "load_s" else f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
    ratio = f"× {speed.ratios[name].median:.2f}" if name in speed.ratios else ""
    share = f"{found.median / largest:.3f}" if largest and name in RATES else ""  # a bar for what is better when longer
    return {"value": text, "interval": ratio, "share": share}


def _quality_row(benchmark: Benchmark, file: FileResult) -> dict[str, Any]:
    cells = []
    for name in QUALITY_COLUMNS if file.quality else ():
        value = getattr(file.quality, name)
        cells.append(f"{value:.1%}" if name == "same_top_p" else f"{value:.5f}")
    note = "" if file.quality else file.quality_fault or "not measured"
    return {"name": file.name, "is_chosen": file is benchmark.recommended, "cells": cells, "note": note}


def _matrices(benchmark: Benchmark) -> list[dict[str, Any]]:
    """The reference and the recommended file in sight, the others folded."""
    pair = benchmark.pair
    groups = [("", pair), ("The other files", [file for file in benchmark.files if file not in pair])]
    found = [
        {"summary": summary, "matrices": [_matrix(file) for file in files if file.report.grading]}
        for summary, files in groups
    ]
    return [group for group in found if group["matrices"]]


def _matrix(file: FileResult) -> dict[str, Any]:
    assert file.report.grading
    rows = []
    for label, counts in zip(Label, file.report.grading.confusion, strict=True):
        total = max(1, sum(counts))
        cells = [{"count": f"{count:,}", "share": f"{count / total:.3f}"} for count in counts]
        rows.append({"label": str(label), "cells": cells})
    return {"name": file.name, "rows": rows}


def _reliability(benchmark: Benchmark) -> dict[str, Any] | None:
    curves = {}
    for file in benchmark.pair:
        if file.report.grading and file.report.grading.reliability:
            bins = file.report.grading.reliability
            curves[file.name] = [ReliabilityPoint(b.confidence, b.accuracy, b.count) for b in bins]
    if not curves:
        return None
    words = [
        f"{name}: " + ", ".join(f"{p.confidence:.2f} believed, {p.accuracy:.2f} right, {p.count} rows" for p in curve)
        for name, curve in curves.items()
    ]
    caption = "On the dashed line a label given 80 % is right 80 % of the time; below it the model is too sure."
    return svg_figure(reliability_figure(curves), "Reliability of label probabilities", "; ".join(words), caption)


def _slice_rows(benchmark: Benchmark) -> list[dict[str, Any]]:
    groups = [file.report.slices | file.report.unseen for file in benchmark.pair]
    return [
        {
            "name": name,
            "n_grade": f"{first.n_grade:,}",
            "n_extract": f"{first.n_extract:,}",
            "accuracy": [_group_cell(group[name], "accuracy") for group in groups],
            "triple_f1": [_group_cell(group[name], "triple_f1_temporal") for group in groups],
        }
        for name, first in groups[0].items()
    ]


def _group_cell(group: GroupScores, measure: str) -> dict[str, Any]:
    value, interval = group.values.get(measure), group.intervals.get(measure)
    if value is None:
        return NOTHING
    text = f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}]" if interval else ""
    return {"value": f"{100 * value:.0f} %", "interval": text, "share": f"{value:.3f}"}


def _example_groups(benchmark: Benchmark) -> list[dict[str, Any]]:
    """The recommended file's first and open, the others folded; files that lost nothing are left out."""
    first = benchmark.recommended
    ordered = sorted(benchmark.files[1:], key=lambda file: (file is not first, file.size_bytes))
    groups = []
    for file in ordered:
        assert file.comparison
        differences = file.comparison.differences
        losses = [difference for difference in differences if difference.gain < 0]
        gains = [difference for difference in differences if difference.gain > 0]
        examples = [_example(benchmark.reference.name, file.name, one) for one in worst(losses, N_EXAMPLES)]
        if examples:
            summary = f"{file.name}: {len(losses):,} rows farther from gold, {len(gains):,} nearer"
            groups.append({"summary": summary, "is_open": file is first, "examples": examples})
    return groups


def _example(reference: str, name: str, difference: RowDifference) -> dict[str, Any]:
    sides = [("gold", difference.gold), (reference, difference.reference), (name, difference.model)]
    task = "label" if difference.task == Task.GRADE else "extraction"
    return {
        "title": f"{task}, {100 * difference.gain:+.0f} points",
        "about": " · ".join(filter(None, [difference.id, *difference.slices])),
        "exchange": difference.exchange,
        "sides": [{"name": side, "text": text} for side, text in sides],
    }
