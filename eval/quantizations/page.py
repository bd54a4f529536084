"""The report of quantizations as files: Markdown with its picture, JSON, and one HTML page.

What they show is `view`'s. The page has no scripts, fetches nothing, is light and dark, wide and narrow;
`page.html.jinja` escapes whatever is put into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from eval.quantizations.choice import MEASURES
from eval.quantizations.plots import reliability_figure, size_figure, to_svg, write_overview
from eval.quantizations.report import Benchmark, score_of, size_point, size_points, to_json
from eval.quantizations.view import confusions, further_tables, overview, warnings
from eval.reports.row_differences import RowDifference, worst
from eval.reports.tables import bullets, page
from observer.files import write_json, write_text
from observer.prompts import Task

TEMPLATE = Path(__file__).with_name("page.html.jinja")
N_EXAMPLES = 6


def write_reports(benchmark: Benchmark, stem: Path) -> list[Path]:
    """Write `STEM.html`, `.json`, `.md` and `.png`; return the paths."""
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".html", ".json", ".md", ".png")]
    write_text(paths[0], to_html(benchmark))
    write_json(paths[1], to_json(benchmark))
    write_text(paths[2], to_markdown(benchmark, paths[3].name))
    measures = {title: size_points(benchmark, measure) for measure, title in MEASURES.items()}
    write_overview({title: points for title, points in measures.items() if points}, paths[3], benchmark.title)
    return paths


def to_markdown(benchmark: Benchmark, picture: str) -> str:
    """The report without rows of the data; `picture` is a file beside it."""
    found, first = benchmark.recommendation, overview(benchmark)
    smaller = "\n".join(f"- {line}" for line in found.smaller)
    parts = [f"**{found.sentence}**", "\n".join(f"- {reason}" for reason in found.reasons)]
    parts += ["Why none of the smaller files:", smaller] if smaller else []
    parts += [f"> {warning}" for warning in warnings(benchmark)]
    parts += [first.markdown(), first.about, f"![file size against quality]({picture})"]
    for one in further_tables(benchmark):
        parts += [f"## {one.title}", one.about, one.markdown()]
    return page(benchmark.title, *parts, "## How it was measured", bullets(benchmark.facts))


def to_html(benchmark: Benchmark) -> str:
    """The whole page."""
    pair = benchmark.pair
    others = [file for file in benchmark.files if file not in pair]
    shown = {
        "benchmark": benchmark,
        "warnings": warnings(benchmark),
        "overview": overview(benchmark),
        "size_figures": list(_size_figures(benchmark)),
        "tables": further_tables(benchmark),
        "confusions": [("", confusions(pair)), ("The other files", confusions(others))],
        "reliability": _reliability(benchmark),
        "examples": list(_example_groups(benchmark)),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(shown) + "\n"


def _figure(figure: Any, title: str, description: str, caption: str) -> dict[str, Any]:
    return {"svg": Markup(to_svg(figure, title, description)), "caption": caption}


def _size_figures(benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    for measure, title in MEASURES.items():
        if score_of(benchmark.reference, measure):
            points = size_points(benchmark, measure)
            words = "; ".join(f"{file.name}: {file.size_bytes / 1e6:.2f} MB, {point.value:.3f}"
                              for file, point in zip(benchmark.files, points, strict=True))  # fmt: skip
            caption = f"Size against {title}, with 95 % intervals. All figures are in the table above."
            yield _figure(size_figure(points, title), f"File size against {title}", words, caption)
    known = [(file, file.quality.mean_kld) for file in benchmark.files if file.quality]
    if known:
        points = [size_point(benchmark, file, value) for file, value in known]
        yield _figure(
            size_figure(points, "mean KL divergence, nats", lower_is_better=True),
            "File size against mean KL divergence",
            "; ".join(f"{file.name}: {file.size_bytes / 1e6:.2f} MB, {value:.4f}" for file, value in known),
            f"How far the next-token distributions are from those of {benchmark.reference.name}: lower is better.",
        )


def _reliability(benchmark: Benchmark) -> dict[str, Any] | None:
    curves = {
        file.name: file.report.grading.reliability
        for file in benchmark.pair
        if file.report.grading and file.report.grading.reliability
    }
    if not curves:
        return None
    words = [
        f"{name}: " + ", ".join(f"{p.confidence:.2f} believed, {p.accuracy:.2f} right, {p.count} rows" for p in curve)
        for name, curve in curves.items()
    ]
    caption = "On the dashed line a label given 80 % is right 80 % of the time; below it the model is too sure."
    return _figure(reliability_figure(curves), "Reliability of label probabilities", "; ".join(words), caption)


def _example_groups(benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    """The recommended file's first and open, the others folded; files that lost nothing are left out."""
    first = benchmark.recommended
    for file in sorted(benchmark.files[1:], key=lambda file: (file is not first, file.size_bytes)):
        assert file.comparison
        losses, gains = ([d for d in file.comparison.differences if sign * d.gain > 0] for sign in (-1, 1))
        if losses:
            yield {
                "summary": f"{file.name}: {len(losses):,} rows farther from gold, {len(gains):,} nearer",
                "is_open": file is first,
                "examples": [_example(benchmark.reference.name, file.name, one) for one in worst(losses, N_EXAMPLES)],
            }


def _example(reference: str, name: str, difference: RowDifference) -> dict[str, Any]:
    task = "label" if difference.task == Task.GRADE else "extraction"
    return {
        "title": f"{task}, {100 * difference.gain:+.0f} points",
        "about": " · ".join(filter(None, [difference.id, *difference.slices])),
        "exchange": difference.exchange,
        "sides": [("gold", difference.gold), (reference, difference.reference), (name, difference.model)],
    }
