"""The benchmark of quantizations as one HTML page: no scripts, nothing fetched, light and dark, wide and narrow.

Here figures become words; `page.html.jinja` is the page, and escapes whatever is put into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.answers.origin import STAND_IN_NOTE
from eval.quantizations.choice import MEASURES, Verdict
from eval.quantizations.page_sections import NOTHING, sections_of, svg_figure
from eval.quantizations.plots import size_figure
from eval.quantizations.report import Benchmark, FileResult, score_of, size_point, size_points
from observer.files import write_text

if TYPE_CHECKING:
    from eval.quantizations.report import SpeedSummary
    from eval.reports.comparison import Test

TEMPLATE = Path(__file__).with_name("page.html.jinja")
_KINDS = {Verdict.REFERENCE: "base", Verdict.NO_HARM: "good", Verdict.UNCLEAR: "open", Verdict.WORSE: "bad"}


def write_html(benchmark: Benchmark, path: Path) -> Path:
    write_text(path, to_html(benchmark))
    return path


def to_html(benchmark: Benchmark) -> str:
    """The whole page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(page=page_of(benchmark)) + "\n"


def page_of(benchmark: Benchmark) -> dict[str, Any]:
    """Everything the template shows, as text ready to be escaped."""
    shown = [measure for measure in MEASURES if score_of(benchmark.reference, measure)]
    return {
        "title": benchmark.title,
        "recommendation": benchmark.recommendation,
        "chosen_path": benchmark.recommended.candidate.path,
        "warnings": _warnings(benchmark),
        "reference": benchmark.reference.name,
        "measures": [MEASURES[measure] for measure in shown],
        "files": [_file_row(benchmark, file, shown) for file in benchmark.files],
        "table_note": "In brackets: 95 % intervals that resample families of rows. Differences are to the reference.",
        "size_figures": list(_size_figures(benchmark, shown)),
        "facts": benchmark.facts,
    } | sections_of(benchmark)


def _warnings(benchmark: Benchmark) -> list[str]:
    stand_in = [STAND_IN_NOTE] if benchmark.is_stand_in else []
    fallbacks = [file.name for file in benchmark.files if file.candidate.n_fallbacks]
    other_types = (
        [f"Some tensors of {', '.join(fallbacks)} have another type than asked for: their rows do not divide by its "
         "block, so these files say little of their type."] if fallbacks else []
    )  # fmt: skip
    failed = [f"{name} could not be measured: {fault}" for name, fault in benchmark.failures.items()]
    return [*stand_in, *other_types, *failed]


def _file_row(benchmark: Benchmark, file: FileResult, measures: Sequence[str]) -> dict[str, Any]:
    quality = file.quality
    return {
        "name": file.name,
        "is_chosen": file is benchmark.recommended,
        "size_mb": f"{file.size_bytes / 1e6:,.2f}",
        "size_share": f"{100 * file.size_bytes / benchmark.reference.size_bytes:.0f} %",
        "verdict": {"kind": _KINDS[file.verdict], "text": str(file.verdict)},
        "measures": [
            {"score": _score_cell(file, measure), "difference": _difference_cell(file.test(measure))}
            for measure in measures
        ],
        "mean_kld": f"{quality.mean_kld:.5f}" if quality else "–",
        "same_top": f"{quality.same_top_p:.1%}" if quality else "–",
        "grade_ratio": _ratio(file.speed, "grade_examples_per_s"),
        "extract_ratio": _ratio(file.speed, "extract_examples_per_s"),
    }


def _score_cell(file: FileResult, measure: str) -> dict[str, Any]:
    found = score_of(file, measure)
    if found is None:
        return NOTHING
    value, interval = found
    text = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else ""
    return {"value": f"{100 * value:.1f} %", "interval": text, "share": f"{value:.3f}"}


def _difference_cell(test: Test | None) -> dict[str, str]:
    if test is None:
        return {"value": "", "interval": ""}
    low, high = 100 * test.interval.low, 100 * test.interval.high
    return {"value": f"{100 * test.difference:+.1f}", "interval": f"[{low:+.1f}, {high:+.1f}]"}


def _ratio(speed: SpeedSummary | None, name: str) -> str:
    return f"{speed.ratios[name].median:.2f}" if speed and name in speed.ratios else "–"


def _size_figures(benchmark: Benchmark, measures: Sequence[str]) -> Iterator[dict[str, Any]]:
    for measure in measures:
        points = size_points(benchmark, measure)
        yield svg_figure(
            size_figure(points, MEASURES[measure]),
            f"File size against {MEASURES[measure]}",
            "; ".join(f"{file.name}: {file.size_bytes / 1e6:.2f} MB, {point.value:.3f}"
                      for file, point in zip(benchmark.files, points, strict=True)),
            f"Size against {MEASURES[measure]}, with 95 % intervals. All figures are in the table above.",
        )  # fmt: skip
    known = [(file, file.quality.mean_kld) for file in benchmark.files if file.quality]
    if known:
        points = [size_point(benchmark, file, value, value, value) for file, value in known]
        yield svg_figure(
            size_figure(points, "mean KL divergence, nats", lower_is_better=True),
            "File size against mean KL divergence",
            "; ".join(f"{file.name}: {file.size_bytes / 1e6:.2f} MB, {value:.4f}" for file, value in known),
            f"How far the next-token distributions are from those of {benchmark.reference.name}: lower is better.",
        )
