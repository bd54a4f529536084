"""What the report of quantizations shows, once: tables and warnings as text, for Markdown and for the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.answers.origin import STAND_IN_NOTE
from eval.metrics.significance import Interval
from eval.quantizations.choice import MEASURES, Verdict
from eval.quantizations.report import COSTS, RATES, Benchmark, FileResult, SpeedSummary, score_of
from eval.reports.comparison import Test
from eval.reports.tables import table
from observer.schema import Label

KINDS = {Verdict.REFERENCE: "base", Verdict.NO_HARM: "good", Verdict.UNCLEAR: "open", Verdict.WORSE: "bad"}
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


@dataclass(frozen=True)
class Cell:
    """`note` is an interval or a ratio, `share` the length of a bar from 0 to 1, `kind` the colour of a verdict."""

    text: str = "–"
    note: str = ""
    share: float | None = None
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.note}".strip()


@dataclass(frozen=True)
class Row:
    """`note` stands in place of the cells."""

    name: str
    cells: list[Cell]
    is_chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """The first column has the rows' names."""

    title: str
    about: str
    columns: list[str]
    rows: list[Row]

    def markdown(self) -> str:
        """The chosen name in bold."""
        n_empty = len(self.columns) - 2
        rows = [
            [f"**{row.name}**" if row.is_chosen else row.name]
            + ([row.note, *[""] * n_empty] if row.note else [str(cell) for cell in row.cells])
            for row in self.rows
        ]
        return table(self.columns, rows)


def overview(benchmark: Benchmark) -> Table:
    """Every file with what decides, and how fast it is."""
    shown = [measure for measure in MEASURES if score_of(benchmark.reference, measure)]
    columns = ["file", f"MB, % of {benchmark.reference.name}", "verdict"]
    for measure in shown:
        columns += [MEASURES[measure], "difference, points"]
    columns += ["graded, ×", "extracted, ×"]
    rows = []
    for file in benchmark.files:
        share = f"({100 * file.size_bytes / benchmark.reference.size_bytes:.0f} %)"
        cells = [Cell(f"{file.size_bytes / 1e6:,.2f}", share), Cell(str(file.verdict), kind=KINDS[file.verdict])]
        for measure in shown:
            cells += [_percent(*(score_of(file, measure) or (None, None)), digits=1), _difference(file.test(measure))]
        cells += [_ratio_cell(file.speed, name) for name in ("grade_examples_per_s", "extract_examples_per_s")]
        rows.append(_row(benchmark, file, cells))
    about = "In brackets: 95 % intervals that resample families of rows. Differences and × are to the reference."
    return Table("All files", about, columns, rows)


def further_tables(benchmark: Benchmark) -> list[Table]:
    """Below the overview; those that have rows."""
    files, others = benchmark.files, benchmark.files[1:]
    names = [file.name for file in benchmark.pair]
    speed = [_row(benchmark, file, _speed_cells(benchmark, file.speed)) for file in files if file.speed]
    scores = [_row(benchmark, file, _score_cells(file)) for file in files]
    quality = [
        _row(benchmark, file, [_quality_cell(file, name) for name in QUALITY_COLUMNS],
             note="" if file.quality else file.quality_fault or "not measured")
        for file in others
    ]  # fmt: skip
    found = [
        Table("Speed and memory", "Medians over rounds in which the files took turns; × is the median ratio to the "
              "reference in the same round. On a shared machine trust the ratios.",
              ["file", *RATE_TITLES.values(), *COST_TITLES.values()], speed),
        Table("Further scores", "What the rule does not look at. In brackets: 95 % intervals.",
              ["file", *SCORE_COLUMNS.values(), "valid JSON without grammar"], scores),
        Table(f"Next-token distributions against {benchmark.reference.name}",
              "Over the tokens of the gold answers, under llama.cpp's names for these figures; shares where it prints "
              "percent. They show damage long before answers change.", ["file", *QUALITY_COLUMNS.values()], quality),
        Table("Hard cases", "A row may be in several or none. Few rows say little: mind the counts.",
              ["rows with", "graded", *(f"accuracy, {name}" for name in names),
               "extracted", *(f"triple F1, {name}" for name in names)], _slice_rows(benchmark)),
    ]  # fmt: skip
    return [one for one in found if one.rows]


def confusions(files: Sequence[FileResult]) -> list[Table]:
    """Rows by gold label (down) and answered label (across)."""
    tables = []
    for file in files:
        if file.report.grading:
            pairs = zip(Label, file.report.grading.confusion, strict=True)
            rows = [
                Row(str(label), [Cell(f"{count:,}", share=count / max(1, sum(counts))) for count in counts])
                for label, counts in pairs
            ]
            tables.append(Table(file.name, "", ["gold", *map(str, Label)], rows))
    return tables


def warnings(benchmark: Benchmark) -> list[str]:
    """What a reader must know before the figures."""
    fallbacks = [file.name for file in benchmark.files if file.candidate.n_fallbacks]
    other_types = (
        [f"Some tensors of {', '.join(fallbacks)} have another type than asked for: their rows do not divide by its "
         "block, so these files say little of their type."] if fallbacks else []
    )  # fmt: skip
    failed = [f"{name} could not be measured: {fault}" for name, fault in benchmark.failures.items()]
    return [*([STAND_IN_NOTE] if benchmark.is_stand_in else []), *other_types, *failed]


def _row(benchmark: Benchmark, file: FileResult, cells: list[Cell], note: str = "") -> Row:
    return Row(file.name, cells, file is benchmark.recommended, note)


def _percent(value: float | None, interval: Interval | None, *, digits: int, has_bar: bool = False) -> Cell:
    if value is None:
        return Cell()
    note = f"[{100 * interval.low:.{digits}f}, {100 * interval.high:.{digits}f}]" if interval else ""
    return Cell(f"{100 * value:.{digits}f} %", note, value if has_bar else None)


def _difference(test: Test | None) -> Cell:
    if test is None:
        return Cell("")
    low, high = 100 * test.interval.low, 100 * test.interval.high
    return Cell(f"{100 * test.difference:+.1f}", f"[{low:+.1f}, {high:+.1f}], p {test.p_text}")


def _ratio_cell(speed: SpeedSummary | None, name: str) -> Cell:
    return Cell(f"{speed.ratios[name].median:.2f}") if speed and name in speed.ratios else Cell()


def _quality_cell(file: FileResult, name: str) -> Cell:
    if file.quality is None:
        return Cell()
    value = getattr(file.quality, name)
    return Cell(f"{value:.1%}" if name == "same_top_p" else f"{value:.5f}")


def _score_cells(file: FileResult) -> list[Cell]:
    """Task by task."""
    parts = [scores for scores in (file.report.grading, file.report.extraction) if scores]
    owners = {name: next((part for part in parts if hasattr(part, name)), None) for name in SCORE_COLUMNS}
    cells = []
    for name, scores in (*owners.items(), ("json_validity", file.report.unconstrained)):
        value, interval = (getattr(scores, name), scores.intervals.get(name)) if scores else (None, None)
        note = f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
        cells.append(Cell() if value is None else Cell(f"{value:.3f}", note))
    return cells


def _speed_cells(benchmark: Benchmark, speed: SpeedSummary) -> list[Cell]:
    """A bar for what is better when longer."""
    cells = []
    for name in (*RATES, *COSTS):
        known = [f.speed.figures[name].median for f in benchmark.files if f.speed and name in f.speed.figures]
        if name not in speed.figures:
            cells.append(Cell())
            continue
        median = speed.figures[name].median
        value = median / 1e6 if name == "peak_bytes" else median
        text = f"{value:,.2f}" if name == "load_s" else f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
        ratio = f"× {speed.ratios[name].median:.2f}" if name in speed.ratios else ""
        cells.append(Cell(text, ratio, median / max(known) if name in RATES and max(known) else None))
    return cells


def _slice_rows(benchmark: Benchmark) -> list[Row]:
    groups = [file.report.slices | file.report.unseen for file in benchmark.pair]

    def cells(name: str, count: int, measure: str) -> list[Cell]:
        found = [(group[name].values.get(measure), group[name].intervals.get(measure)) for group in groups]
        return [Cell(f"{count:,}"), *(_percent(*one, digits=0, has_bar=True) for one in found)]

    return [
        Row(name, cells(name, one.n_grade, "accuracy") + cells(name, one.n_extract, "triple_f1_temporal"))
        for name, one in groups[0].items()
    ]
