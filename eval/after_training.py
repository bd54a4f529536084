"""The evaluation at the end of a training: every quantization over the validation rows, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.answers.rows import take
from eval.evaluate import evaluate
from eval.reports.evaluation_report import STAND_IN_NOTE, summary_table, write_report
from observer.config import Config
from observer.data.dataset import read_split
from observer.files import write_text


def evaluate_run(config: Config, models: Sequence[Path], summary: Path) -> None:
    """Write a report for each model and their table to `summary`."""
    rows = take(read_split(config.data.val), config.evaluation.limit)
    train_rows = read_split(config.data.train)
    reports = []
    for model in models:
        reports.append(evaluate(model, rows, train_rows, split=str(config.data.val), folder=summary.parent))
        write_report(reports[-1], summary.parent)
    notes = [STAND_IN_NOTE] if any(report.model.is_stand_in for report in reports) else []
    write_text(summary, "\n\n".join([summary_table(reports), *notes]) + "\n")
