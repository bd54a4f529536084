"""Pictures of the quantization benchmark: matplotlib figures, as PNG files and as SVG text that follows a page's theme.

Colours are named: in SVG each becomes the CSS variable of its name, so that one figure serves light and dark.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from sklearn.isotonic import isotonic_regression

from eval.metrics.grading import ReliabilityBin
from observer.files import atomic_path

COLORS = {"ink": "#1b2027", "muted": "#6b7683", "line": "#d3d9df", "plain": "#1f5fa8", "matrix": "#b4540a"}
"""`plain` and `matrix` are files made without and with an importance matrix. No two may have the same value."""
MARKERS = {"reference": "D", "no harm beyond the margin": "o", "no evidence of harm": "^", "worse": "X"}
"""By verdict: what colour alone would say is not seen by all."""
_SIZE = (5.0, 3.9)
_LEGEND_HEIGHT = 0.9
_LABEL_GAP = 0.042
"""Between the type names above a plot, as a share of its width."""


@dataclass(frozen=True)
class SizePoint:
    """One file: its size against one measure, with the measure's interval where it has one."""

    type_name: str
    size_bytes: int
    value: float
    low: float
    high: float
    verdict: str
    has_imatrix: bool = False
    is_recommended: bool = False


def pareto_front(points: Sequence[SizePoint], *, lower_is_better: bool = False) -> list[SizePoint]:
    """The points that no other beats in size without losing in value, from the smallest on."""
    front: list[SizePoint] = []
    for point in sorted(points, key=lambda p: (p.size_bytes, p.value if lower_is_better else -p.value)):
        if not front or (point.value < front[-1].value if lower_is_better else point.value > front[-1].value):
            front.append(point)
    return front


def spread_labels(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places, moved as little as possible (least squares) so that neighbours are `gap` apart."""
    if not places:
        return []
    moved = isotonic_regression([place - gap * n for n, place in enumerate(places)])
    return [float(place) + gap * n for n, place in enumerate(moved)]


def size_figure(points: Sequence[SizePoint], measure: str, *, lower_is_better: bool = False) -> Figure:
    """Size (log scale) against a measure, with intervals and the Pareto front."""
    figure, (axes,) = _new_figure()
    draw_sizes(axes, points, measure, lower_is_better=lower_is_better)
    return figure


def draw_sizes(axes: Axes, points: Sequence[SizePoint], measure: str, *, lower_is_better: bool = False) -> None:
    """The same into axes of a figure."""
    front = pareto_front(points, lower_is_better=lower_is_better)
    axes.plot(
        [p.size_bytes / 1e6 for p in front], [p.value for p in front], drawstyle="steps-post",
        color=COLORS["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1,
    )  # fmt: skip
    for point in points:
        color, size_mb = COLORS["matrix" if point.has_imatrix else "plain"], point.size_bytes / 1e6
        axes.plot([size_mb, size_mb], [point.low, point.high], color=color, linewidth=1, alpha=0.5, zorder=2)
        axes.plot(
            size_mb, point.value, MARKERS[point.verdict], color=color, markersize=6, markeredgewidth=0, zorder=3,
            alpha=0.9,
        )  # fmt: skip
        if point.is_recommended:
            axes.plot(
                size_mb, point.value, "o", markersize=14, markerfacecolor="none", markeredgecolor=COLORS["ink"],
                markeredgewidth=1.5, zorder=4,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("file size, MB (log scale)")
    axes.set_ylabel(measure)
    axes.margins(x=0.06, y=0.08)
    if lower_is_better and all(point.value > 0 for point in points):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
    _plain_ticks(axes.xaxis)
    _type_names(axes, points)


def reliability_figure(curves: Mapping[str, Sequence[ReliabilityBin]]) -> Figure:
    """How often a label is right against how likely the model called it; markers grow with the rows of a bin."""
    figure, (axes,) = _new_figure()
    axes.plot([0, 1], [0, 1], color=COLORS["muted"], linewidth=1, linestyle=(0, (4, 3)))
    styles = [("plain", "o"), ("matrix", "s"), ("muted", "^")]
    for (name, curve), (color, marker) in zip(curves.items(), styles, strict=False):
        xs, ys = [p.confidence for p in curve], [p.accuracy for p in curve]
        n_rows = max(1, sum(p.count for p in curve))
        axes.plot(xs, ys, color=COLORS[color], linewidth=1.2)
        sizes = [12 + 120 * p.count / n_rows for p in curve]
        axes.scatter(xs, ys, s=sizes, color=COLORS[color], marker=marker, linewidths=0, label=name)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("probability of the label it chose")
    axes.set_ylabel("share of rows where it is right")
    legend = axes.legend(frameon=False, fontsize=9, labelcolor=COLORS["ink"], markerscale=0.7, loc="upper left")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def to_svg(figure: Figure, title: str, description: str) -> str:
    """SVG to stand within HTML: named for screen readers, as wide as its place, in the page's font and colours."""
    stream = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL).replace("xlink:href", "href")
    used = set(re.findall(r'["(]#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for name, value in COLORS.items():
        svg = svg.replace(value, f"var(--{name})")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box, "matplotlib writes a viewBox"
    opening = f'<svg role="img" {box[0]} aria-label="{escape(title)}">'
    return f"{opening}<title>{escape(title)}</title><desc>{escape(description)}</desc>{svg[svg.index('>') + 1 :]}"


def write_overview(points: dict[str, Sequence[SizePoint]], picture: Path, title: str) -> None:
    """One PNG with a panel for each measure, for Markdown."""
    figure, panels = _new_figure(len(points))
    figure.set_figheight(_SIZE[1] + _LEGEND_HEIGHT)
    for axes, (measure, series) in zip(panels, points.items(), strict=True):
        draw_sizes(axes, series, measure)
    figure.suptitle(title, fontsize="medium", color=COLORS["ink"], parse_math=False)
    figure.legend(
        handles=_legend_handles(), loc="outside lower center", ncols=2 * len(panels), frameon=False, fontsize=8.5
    )
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _legend_handles() -> list[Any]:
    def mark(marker: str, color: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, color=COLORS[color], label=label, markeredgewidth=0)

    ring = Line2D(
        [], [], linestyle="none", marker="o", markersize=11, markerfacecolor="none", label="recommended",
        markeredgecolor=COLORS["ink"],
    )  # fmt: skip
    dashed = Line2D([], [], color=COLORS["muted"], linestyle=(0, (4, 3)), label="Pareto front")
    kinds = [mark("s", "plain", "without importance matrix"), mark("s", "matrix", "with importance matrix")]
    return [*(mark(marker, "muted", verdict) for verdict, marker in MARKERS.items()), *kinds, ring, dashed]


def _new_figure(n_panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, side by side; without pyplot, which keeps figures alive and asks for a display."""
    width, height = _SIZE
    figure = Figure(figsize=(width * n_panels, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, n_panels, squeeze=False)[0])
    for axes in panels:
        axes.set_facecolor("none")
        axes.tick_params(colors=COLORS["muted"], labelcolor=COLORS["ink"], labelsize=9)
        axes.xaxis.label.set(color=COLORS["ink"], fontsize=9.5)
        axes.yaxis.label.set(color=COLORS["ink"], fontsize=9.5)
        axes.grid(axis="y", color=COLORS["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(COLORS["muted"])
    return figure, panels


def _plain_ticks(axis: Axis) -> None:
    """Numbers on a log axis as they are written, not as powers of ten."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.set_minor_formatter(NullFormatter())


def _type_names(axes: Axes, points: Sequence[SizePoint]) -> None:
    """Names above the plot, a leader line from each to its size; files of one type and about one size share one.

    What files are all called, such as a model's name before its types, is left out.
    """
    named: dict[str, float] = {}
    for point in points:
        named.setdefault(point.type_name, point.size_bytes / 1e6)
    names = sorted(named, key=lambda name: named[name])
    n_shared = os.path.commonprefix(names).rfind("-") + 1  # noqa: RUF071  (letters, not folders, are what is meant)
    to_share = axes.transData + axes.transAxes.inverted()
    shares = [float(to_share.transform((named[name], axes.get_ylim()[0]))[0]) for name in names]
    for name, share, place in zip(names, shares, spread_labels(shares, _LABEL_GAP), strict=True):
        axes.plot(
            [share, share, place], [0, 1, 1.04], transform=axes.transAxes, color=COLORS["line"], linewidth=0.7,
            zorder=0, clip_on=False, scalex=False, scaley=False,
        )  # fmt: skip
        axes.text(
            place, 1.06, name[n_shared:][:24], transform=axes.transAxes, rotation=90, rotation_mode="anchor", ha="left",
            va="center", fontsize=8.5, color=COLORS["ink"], parse_math=False,
        )  # fmt: skip
