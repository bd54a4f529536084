"""What an evaluation found and where it came from, as JSON, as Markdown and as one line of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.answers.origin import STAND_IN_NOTE, Machine, ModelInfo, split_prefix
from eval.reports.tables import bullets, page, show, table
from observer.files import write_json, write_text
from observer.schema import Label

if TYPE_CHECKING:
    from eval.metrics.extraction import ExtractionScores, ValidityScores
    from eval.metrics.grading import GradingScores, KeepPoint, ReliabilityBin
    from eval.metrics.significance import Interval
    from eval.reports.attack_report import AttackScores

INTERVAL_NOTE = (
    "In brackets: 95 % intervals, bootstrapped by family (1,000 resamples; the wordings of one family rise and fall "
    "together). They say how far other rows of this kind could move a score, not how other kinds of text would."
)
_CLASS_COLUMNS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class GroupScores:
    """One hard case, or one kind of unseen row: the main scores of each task over its rows, None without rows.

    `intervals` are 95 %, by family, named as the fields.
    """

    n_grade: int
    n_extract: int
    n_families: int
    values: dict[str, float | None]
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """One model on one split. A task without rows is None.

    `baselines` score the majority class and the TF-IDF probe on the same grading rows. `unconstrained` answers were
    given without the grammar, by a sample of the rows; `n_truncated` counts the others that reached the token limit.
    `examples_per_s` counts whole examples, prompts included, loading left out. `unfinished` tasks were cut short.
    `attacks` are of the split of that name. `baseline_files` hold the rows that the baselines learned from.
    """

    model: ModelInfo
    split: str
    date: str
    command: str | None
    machine: Machine
    environment: dict[str, Any]
    grading: GradingScores | None
    baselines: dict[str, GradingScores]
    extraction: ExtractionScores | None
    unconstrained: ValidityScores | None
    n_truncated: int
    examples_per_s: dict[str, float]
    slices: dict[str, GroupScores]
    unseen: dict[str, GroupScores]
    origins: dict[str, GroupScores]
    unfinished: tuple[str, ...] = ()
    attacks: AttackScores | None = None
    baseline_files: tuple[str, ...] = ()


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write it as JSON and as Markdown; return both paths."""
    paths = [report_path(report.model, report.split, folder, suffix) for suffix in ("json", "md")]
    write_json(paths[0], asdict(report))
    write_text(paths[1], to_markdown(report))
    return paths


def report_path(model: ModelInfo, split: str, folder: Path, suffix: str) -> Path:
    """Where a report, or with the suffix `answers.jsonl` what it was made of, stands in its folder.

    `evaluation-TYPE` for a run's own file and val, else the file's stem in place of the type, and `SPLIT-` before it.
    """
    stem = Path(model.path).stem if model.path.endswith(".gguf") else model.file_type
    name = model.file_type if stem == f"{folder.resolve().parent.name}-{model.file_type}" else stem
    return folder / f"{split_prefix(split, folder)}evaluation-{name}.{suffix}"


def summary_table(reports: Sequence[Report]) -> str:
    """One Markdown row a model, aligned for a terminal too; the grading baselines below them."""
    rows = [_summary_row(report) for report in reports]
    for name, scores in (reports[0].baselines if reports else {}).items():
        rows.append([name, "", show(scores.macro_f1, scores.intervals.get("macro_f1")), "", "", "", ""])
    return table(["model", "MB", "macro_f1", "entity_f1", "triple_f1_temporal", "grade/s", "extract/s"], rows)


def to_markdown(report: Report) -> str:
    """The report as a person reads it."""
    stand_in = f"> {STAND_IN_NOTE}" if report.model.is_stand_in else ""
    parts = [stand_in, summary_table([report]), INTERVAL_NOTE, _origin(report)]
    if report.grading:
        parts += ["## Grading", *_grading_section(report.grading, report.baselines)]
        if report.baselines and report.baseline_files:
            parts.append(f"The baselines learned from {' and '.join(report.baseline_files)}.")
    if report.extraction:
        parts += ["## Extraction", _extraction_section(report)]
    if report.unseen:
        parts += ["## By what train never shows", _groups_section("unseen", report.unseen)]
    if report.origins:
        parts += ["## By origin of the rows", _groups_section("origin", report.origins)]
    if report.slices:
        parts += ["## Hard cases", _groups_section("slice", report.slices)]
    if report.attacks:
        from eval.reports.attack_report import attacks_section

        parts += ["## Attacks", *attacks_section(report.attacks)]
    return page(f"Evaluation of {report.model.name}, {report.model.file_type}", *parts)


def _summary_row(report: Report) -> list[str]:
    scores = [(report.grading, "macro_f1"), (report.extraction, "entity_f1"), (report.extraction, "triple_f1_temporal")]
    row = [report.model.file_type, _megabytes(report.model)]
    row += [show(getattr(part, name), part.intervals.get(name)) if part else "" for part, name in scores]
    speeds = [report.examples_per_s.get(task) for task in ("grade", "extract")]
    return row + ["" if speed is None else f"{speed:.1f}" for speed in speeds]


def _origin(report: Report) -> str:
    packages = report.environment["packages"]
    facts = {
        "model": f"`{report.model.path}`" + (f" ({size} MB)" if (size := _megabytes(report.model)) else ""),
        "data": f"`{report.split}`",
        "date": report.date,
        "machine": report.machine,
        "versions": f"llama-cpp-python {packages['llama-cpp-python']}, commit {report.environment['git_commit']}",
    }
    if report.command:
        facts["reproduce"] = f"`{report.command}`"
    if report.unfinished:
        facts["cut short"] = f"without {' and '.join(report.unfinished)}"
    return bullets(facts)


def _grading_section(scores: GradingScores, baselines: Mapping[str, GradingScores]) -> list[str]:
    named = {"model": scores} | dict(baselines)
    figures = [name for name, value in vars(scores).items() if isinstance(value, float)]
    overall = [
        [name, *(show(getattr(one, name), one.intervals.get(name)) for one in named.values())] for name in figures
    ]
    classes = [_class_row(label, scores) for label in scores.per_class]
    counts = [[gold, *map(str, row)] for gold, row in zip(map(str, Label), scores.confusion, strict=True)]
    parts = [
        f"{scores.n} rows of {scores.n_families} families.",
        table(["measure", *named], overall),
        table(["label", *_CLASS_COLUMNS, "support"], classes),
        table(["gold, then predicted", *map(str, Label)], counts),
    ]
    parts += [_reliability_table(scores.reliability)] if scores.reliability else []
    return parts + ([_keep_table(scores.keep_curve)] if scores.keep_curve else [])


def _keep_table(curve: Sequence[KeepPoint]) -> str:
    rows = [[f"{point.threshold:g}", show(point.false_keep_rate), show(point.missed_rate)] for point in curve]
    return table(["kept above a probability of", "DISCARD rows kept", "IMPORTANT rows missed"], rows)


def _class_row(label: str, scores: GradingScores) -> list[str]:
    one = scores.per_class[label]
    shown = [show(getattr(one, name), scores.intervals.get(f"{label}.{name}")) for name in _CLASS_COLUMNS]
    return [label, *shown, str(one.support)]


def _reliability_table(bins: Sequence[ReliabilityBin]) -> str:
    rows = [[show(b.confidence), show(b.accuracy), str(b.count)] for b in bins]
    return table(["probability of the label", "share right", "rows"], rows)


def _extraction_section(report: Report) -> str:
    scores = report.extraction
    assert scores is not None
    values = {name: value for name, value in asdict(scores).items() if name != "intervals" and value is not None}
    rows = [
        [name, show(value, scores.intervals.get(name)) if isinstance(value, float) else str(value)]
        for name, value in values.items()
    ]
    if free := report.unconstrained:
        rows += [
            [f"{name} without the grammar (n={free.n})", show(getattr(free, name), free.intervals.get(name))]
            for name in ("json_validity", "schema_validity")
        ]
    return table(["measure", "value"], rows)


def _groups_section(title: str, groups: Mapping[str, GroupScores]) -> str:
    from eval.metrics.measure import MAIN_MEASURES

    measures = [measure for names in MAIN_MEASURES.values() for measure in names]
    rows = [
        [name, *map(str, (group.n_families, group.n_grade, group.n_extract))]
        + [show(group.values.get(measure), group.intervals.get(measure)) for measure in measures]
        for name, group in groups.items()
    ]
    return table([title, "families", "n_grade", "n_extract", *measures], rows)


def _megabytes(model: ModelInfo) -> str:
    return "" if model.size_bytes is None else f"{model.size_bytes / 1e6:,.1f}"
