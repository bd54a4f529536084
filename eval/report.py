"""What an evaluation found and where it came from, as JSON, as Markdown and as one line of a table."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.files import write_json, write_text
from observer.schema import Label

if TYPE_CHECKING:
    from eval.metrics import ExtractionScores, GradingScores

STAND_IN_NOTE = (
    "The base of this model is the nano stand-in, a few million parameters: the numbers show that the "
    "pipeline works, not how good a model of 0.6B parameters is."
)


@dataclass(frozen=True)
class ModelInfo:
    """The GGUF; `name` and `file_type` are its own header's."""

    path: str
    name: str
    file_type: str
    size_bytes: int
    is_stand_in: bool


@dataclass(frozen=True)
class Machine:
    cpu: str
    n_cores: int
    n_threads: int


@dataclass(frozen=True)
class GroupScores:
    """One hard case, or one kind of unseen row: the main scores of each task over its rows, None without rows."""

    n_grade: int
    accuracy: float | None
    macro_f1: float | None
    n_extract: int
    entity_f1: float | None
    triple_f1_temporal: float | None


@dataclass(frozen=True)
class Report:
    """One model on one split. A task without rows is None.

    `baselines` score the majority class and the TF-IDF probe on the same grading rows. `unconstrained_json_validity`
    is the share of valid JSON over `n_unconstrained` rows without the grammar; `n_truncated` counts the answers that
    reached the token limit. `examples_per_s` counts whole examples, prompts included, loading left out.
    """

    model: ModelInfo
    split: str
    date: str
    command: str
    machine: Machine
    environment: dict[str, Any]
    grading: GradingScores | None
    baselines: dict[str, GradingScores]
    extraction: ExtractionScores | None
    n_truncated: int
    unconstrained_json_validity: float | None
    n_unconstrained: int
    examples_per_s: dict[str, float]
    slices: dict[str, GroupScores]
    unseen: dict[str, GroupScores]


def this_machine(n_threads: int) -> Machine:
    from observer.llama import usable_cores

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return Machine(cpu, usable_cores(), n_threads)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write `evaluation-<type>.json` and `.md` (on another split than val: `SPLIT-evaluation-…`); return both paths."""
    stem = f"{split_prefix(report.split)}evaluation-{report.model.file_type}"
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    write_json(paths[0], asdict(report))
    write_text(paths[1], to_markdown(report))
    return paths


def split_prefix(split: str) -> str:
    """Keeps the reports of several splits apart: `challenge-`, `train-`, nothing for val."""
    name = Path(split).stem
    return "" if name == "val" else f"{name}-"


def summary_table(reports: Sequence[Report]) -> str:
    """One Markdown row a model, aligned for a terminal too; the grading baselines below them."""
    header = ["model", "MB", "accuracy", "macro_f1", "json_validity", "entity_f1", "triple_f1", "triple_f1_temporal"]
    header += ["correct_empty_rate", "grade/s", "extract/s"]
    rows = [_summary_row(report) for report in reports]
    for name, scores in (reports[0].baselines if reports else {}).items():
        row = [name, "", _share(scores.accuracy), _share(scores.macro_f1)]
        rows.append(row + [""] * (len(header) - len(row)))
    return _table(header, rows)


def to_markdown(report: Report) -> str:
    """The report as a person reads it."""
    parts = [f"# Evaluation of {report.model.name}, {report.model.file_type}"]
    if report.model.is_stand_in:
        parts.append(f"> {STAND_IN_NOTE}")
    parts += [summary_table([report]), _origin(report)]
    if report.grading:
        parts += ["## Grading", _grading_section(report.grading)]
    if report.extraction:
        parts += ["## Extraction", _extraction_section(report)]
    if report.unseen:
        parts += ["## By what train never shows", _groups_section("unseen", report.unseen)]
    if report.slices:
        parts += ["## Hard cases", _groups_section("slice", report.slices)]
    return "\n\n".join(parts) + "\n"


def _summary_row(report: Report) -> list[str]:
    grading, extraction = report.grading, report.extraction
    row = [report.model.file_type, f"{report.model.size_bytes / 1e6:.1f}"]
    row += [_share(grading.accuracy), _share(grading.macro_f1)] if grading else ["", ""]
    names = ("json_validity", "entity_f1", "triple_f1", "triple_f1_temporal", "correct_empty_rate")
    row += [_share(getattr(extraction, name, None)) for name in names]
    speeds = [report.examples_per_s.get(task) for task in ("grade", "extract")]
    return row + ["" if speed is None else f"{speed:.1f}" for speed in speeds]


def _origin(report: Report) -> str:
    machine = report.machine
    packages = report.environment["packages"]
    facts = {
        "model": f"`{report.model.path}` ({report.model.size_bytes / 1e6:,.1f} MB)",
        "data": f"`{report.split}`",
        "date": report.date,
        "machine": f"{machine.cpu}, {machine.n_cores} cores, {machine.n_threads} threads",
        "versions": f"llama-cpp-python {packages['llama-cpp-python']}, commit {report.environment['git_commit']}",
        "reproduce": f"`{report.command}`",
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _grading_section(scores: GradingScores) -> str:
    labels = [str(label) for label in Label]
    classes = [
        [label, _share(c.precision), _share(c.recall), _share(c.f1), str(c.support)]
        for label, c in scores.per_class.items()
    ]
    counts = [[gold, *map(str, row)] for gold, row in zip(labels, scores.confusion, strict=True)]
    per_class = _table(["label", "precision", "recall", "f1", "support"], classes)
    confusion = _table(["gold, then predicted", *labels], counts)
    return f"{per_class}\n\n{confusion}"


def _extraction_section(report: Report) -> str:
    assert report.extraction is not None
    rows = [
        [name, _share(value) if isinstance(value, float) else str(value)]
        for name, value in asdict(report.extraction).items()
        if value is not None
    ]
    rows.append(["n_truncated", str(report.n_truncated)])
    if report.unconstrained_json_validity is not None:
        name = f"json_validity without the grammar (n={report.n_unconstrained})"
        rows.append([name, _share(report.unconstrained_json_validity)])
    return _table(["measure", "value"], rows)


def _groups_section(title: str, groups: Mapping[str, GroupScores]) -> str:
    header = [title, *(field.name for field in fields(GroupScores))]
    rows = [
        [name, *(str(value) if isinstance(value, int) else _share(value) for value in vars(group).values())]
        for name, group in groups.items()
    ]
    return _table(header, rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines)
