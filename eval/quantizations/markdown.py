"""The benchmark of quantizations as files: Markdown with recommendation and tables, its picture, and the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eval.answers.origin import STAND_IN_NOTE
from eval.quantizations.choice import MEASURES
from eval.quantizations.plots import write_overview
from eval.quantizations.report import COSTS, RATES, Benchmark, FileResult, SpeedSummary, score_of, size_points, to_json
from eval.reports.tables import table
from observer.files import write_json, write_text

if TYPE_CHECKING:
    from eval.reports.comparison import Test


def write_reports(benchmark: Benchmark, stem: Path) -> list[Path]:
    """Write `STEM.json`, `.md` and `.png`; return the paths."""
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".json", ".md", ".png")]
    write_json(paths[0], to_json(benchmark))
    measures = {title: size_points(benchmark, measure) for measure, title in MEASURES.items()}
    write_overview({title: points for title, points in measures.items() if points}, paths[2], benchmark.title)
    write_text(paths[1], to_markdown(benchmark, paths[2].name))
    return paths


def to_markdown(benchmark: Benchmark, picture: str) -> str:
    """The report in short; `picture` is a file beside it."""
    recommendation = benchmark.recommendation
    parts = [f"# {benchmark.title}", f"**{recommendation.sentence}**"]
    parts.append("\n".join(f"- {reason}" for reason in recommendation.reasons))
    if recommendation.smaller:
        parts += ["Why none of the smaller files:", "\n".join(f"- {line}" for line in recommendation.smaller)]
    if benchmark.is_stand_in:
        parts.append(f"> {STAND_IN_NOTE}")
    parts += [to_table(benchmark), f"![file size against quality]({picture})", _divergence_table(benchmark)]
    if benchmark.recommended.speed:
        parts += [
            "Medians of the rounds; `x` is the ratio to the reference in the same round.",
            _speed_table(benchmark),
        ]
    parts += ["\n".join(f"- {name}: {fault}" for name, fault in benchmark.failures.items())]
    parts += ["## How it was measured", "\n".join(f"- {name}: {value}" for name, value in benchmark.facts.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_table(benchmark: Benchmark) -> str:
    """Scores and verdicts, a Markdown row a file."""
    shown = [measure for measure in MEASURES if score_of(benchmark.reference, measure)]
    header = ["file", "MB", "verdict"]
    for measure in shown:
        header += [f"{MEASURES[measure]} [95 %]", "difference [95 %]", "p"]
    rows = []
    for file in benchmark.files:
        cells = [file.name, f"{file.size_bytes / 1e6:,.2f}", str(file.verdict)]
        for measure in shown:
            cells += [_score_cell(file, measure), *_difference_cells(file.test(measure))]
        rows.append([cell and f"**{cell}**" for cell in cells] if file is benchmark.recommended else cells)
    return table(header, rows)


def _score_cell(file: FileResult, measure: str) -> str:
    found = score_of(file, measure)
    if found is None:
        return ""
    value, interval = found
    return f"{value:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")


def _difference_cells(test: Test | None) -> list[str]:
    if test is None:
        return ["", ""]
    p_value = f"{test.corrected_p:.3f}" if test.corrected_p >= 0.001 else "<0.001"
    return [f"{test.difference:+.3f} [{test.interval.low:+.3f}, {test.interval.high:+.3f}]", p_value]


def _divergence_table(benchmark: Benchmark) -> str:
    names = ("mean_kld", "kld_p99", "max_kld", "same_top_p", "ppl_ratio", "rms_delta_p")
    rows = [
        [file.name, *(f"{getattr(file.quality, name):.5f}" for name in names)]
        for file in benchmark.files
        if file.quality
    ]
    return table(["file", *names], rows) if rows else ""


def _speed_table(benchmark: Benchmark) -> str:
    header = ["file", *(f"{name}, x" for name in RATES), *COSTS]
    rows = []
    for file in benchmark.files:
        if file.speed:
            rates = [_rate_cell(file.speed, name) for name in RATES]
            rows.append([file.name, *rates, *(_cost_cell(file.speed, name) for name in COSTS)])
    return table(header, rows)


def _rate_cell(speed: SpeedSummary, name: str) -> str:
    if name not in speed.figures:
        return ""
    ratio = f", {speed.ratios[name].median:.2f}" if name in speed.ratios else ""
    return f"{speed.figures[name].median:,.1f}{ratio}"


def _cost_cell(speed: SpeedSummary, name: str) -> str:
    if name not in speed.figures:
        return ""
    value = speed.figures[name].median
    return f"{value / 1e6:,.0f} MB" if name == "peak_bytes" else f"{value:,.2f}"
