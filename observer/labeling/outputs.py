"""What a run leaves behind: labelled rows, the rows set aside, and counts that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observer.files import write_jsonl
from observer.labeling.jobs import Outcome
from observer.labeling.votes import Consensus
from observer.prompts import Task
from observer.schema import Extraction, ExtractionRow, GradingRow
from observer.turns.inputs import Item, Unreadable


@dataclass
class TaskResult:
    """The items that one task asks about, and, when it is done, each in one of three lists."""

    task: Task
    asked: list[Item]
    labelled: list[tuple[Item, Consensus]] = field(default_factory=list)
    quarantined: list[tuple[Item, Outcome]] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)

    def add(self, item: Item, outcome: Outcome) -> None:
        if outcome.consensus:
            self.labelled.append((item, outcome.consensus))
        elif outcome.fault:
            self.quarantined.append((item, outcome))
        else:
            self.left.append(item)

    @property
    def summary(self) -> str:
        parts = (len(self.labelled), len(self.quarantined), len(self.left))
        labelled, quarantined, left = (f"{part:,}" for part in parts)
        return f"{self.task}: {sum(parts):,} = {labelled} labelled + {quarantined} quarantined + {left} left"


def task_path(out: Path, task: Task, tasks: Sequence[Task]) -> Path:
    """OUT itself for one task; `OUT-grade` and `OUT-extract` for both."""
    return out if len(tasks) == 1 else out.with_name(f"{out.stem}-{task}{out.suffix}")


def write_labelled(path: Path, result: TaskResult, model: str) -> None:
    """Write the labelled rows; nothing while there are none but some are left, so that no empty file misleads."""
    if result.labelled or not result.left:
        write_jsonl(
            path, [labelled_row(item, consensus, model) for item, consensus in result.labelled], is_private=True
        )


def labelled_row(item: Item, consensus: Consensus, model: str) -> dict[str, Any]:
    """A raw row, ready to be trained on."""
    fields = item.fields | {"source": f"label/{model}", "confidence": consensus.confidence}
    if isinstance(consensus.value, Extraction):
        row = ExtractionRow.model_validate(fields | dict(consensus.value))
    else:
        row = GradingRow.model_validate(fields | {"label": consensus.value, "reasoning": consensus.reasoning})
    return row.model_dump(mode="json", exclude_none=True)


def write_quarantine(path: Path, unreadable: Sequence[Unreadable], results: Sequence[TaskResult]) -> int:
    """Write what was set aside, with place, reason and the raw answer; the number of its lines."""
    rows: list[dict[str, Any]] = [
        {"place": row.place, "task": None, "reason": row.reason, "text": row.text} for row in unreadable
    ]
    rows += [
        {"place": item.place, "task": str(result.task), "reason": outcome.fault, "answer": outcome.answer}
        for result in results
        for item, outcome in result.quarantined
    ]
    if rows or path.exists():
        write_jsonl(path, rows, is_private=True)
    return len(rows)
