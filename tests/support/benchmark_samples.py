"""A benchmark of quantizations without models: answers made of gold, wrong where they are told to be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eval.answers.answering import Answers
from eval.answers.origin import Machine, ModelInfo
from eval.answers.rows import answer_of
from eval.quantizations.files import Candidate
from eval.quantizations.quality import Quality
from eval.quantizations.report import Benchmark, assemble
from eval.quantizations.rounds import Measured, Measurements
from eval.quantizations.speed import Speed
from eval.reports.scoring import score
from observer.observation import Completion, Grade
from observer.prompts import Task, training_row
from observer.schema import Label, parse_row

N_ROWS = 150
EMPTY = '{"entities":[],"relationships":[]}'


def sample_rows(task: Task, n_rows: int = N_ROWS, *, said: str = "I live in Oslo") -> list[dict[str, Any]]:
    """Lines of a split, each of a family of its own; labels in turn."""
    rows = []
    for number in range(n_rows):
        raw: dict[str, Any] = {"user_message": f"{said}, {number}", "assistant_message": "Noted."}
        raw |= {"id": f"{task}-{number}", "family": f"family-{number}", "slices": ["plan"] if number % 3 else []}
        if task == Task.GRADE:
            raw["label"] = list(Label)[number % 3]
        else:
            raw["entities"] = [{"name": "User", "type": "Person"}, {"name": "Oslo", "type": "Place"}]
            lives = {"subject": "User", "predicate": "LIVES_IN", "object": "Oslo", "temporal": "ongoing"}
            raw["relationships"] = [lives]
        row, faults = parse_row(raw)
        assert row is not None, faults
        rows.append(training_row(row))
    return rows


def sample_answers(wrong: Collection[int], n_rows: int = N_ROWS, *, said: str = "I live in Oslo") -> Answers:
    """Gold but for the rows numbered `wrong`: there the next label, and nothing extracted."""
    grade_rows, extract_rows = (sample_rows(task, n_rows, said=said) for task in (Task.GRADE, Task.EXTRACT))
    return Answers(
        model=ModelInfo("sample.gguf", "nano", "q4_k_m", 1, is_stand_in=True),
        split="val",
        date="2026-11-22",
        machine=Machine("a processor", 2, 2),
        environment={},
        grade_rows=grade_rows,
        grades=[_grade(Label(answer_of(row)), number in wrong) for number, row in enumerate(grade_rows)],
        extract_rows=extract_rows,
        completions=[
            Completion(EMPTY if number in wrong else answer_of(row), (1,), truncated=False)
            for number, row in enumerate(extract_rows)
        ],
        seconds={"grade": 1.0, "extract": 2.0},
    )


def _grade(label: Label, is_wrong: bool) -> Grade:
    labels = list(Label)
    chosen = labels[(labels.index(label) + 1) % 3] if is_wrong else label
    return Grade(chosen, {other: 0.8 if other == chosen else 0.1 for other in labels})


def sample_quality(mean_kld: float) -> Quality:
    return Quality(1000, 1.2, 1.1, 1.2 / 1.1, mean_kld, 9.0, 0.1, 0.2, 0.3, 0.4, 0.97, 0.05)


def sample_speed(rate: float) -> Speed:
    return Speed(0.1, 50_000_000, 900 * rate, 90 * rate, 5.0, 60 * rate, 15 * rate)


def sample_benchmark(
    folder: Path,
    files: Mapping[str, tuple[int, Collection[int]]],
    *,
    n_rows: int = N_ROWS,
    said: str = "I live in Oslo",
) -> Benchmark:
    """`files`: name -> size in bytes and the wrong rows; the first is the reference."""
    found = []
    for number, (name, (size_bytes, wrong)) in enumerate(files.items()):
        path = folder / f"{number}.gguf"
        path.write_bytes(b"\0" * size_bytes)
        candidate = Candidate(name, path, name.removesuffix("-imatrix"), name.endswith("-imatrix"))
        quality = sample_quality(0.001 * number + len(wrong) / 100) if number else None
        answers = sample_answers(wrong, n_rows, said=said)
        found.append(Measured(candidate, answers, quality, speeds=[sample_speed(1 + number / 10)]))
    reports = [score(one.answers) for one in found]
    facts = {"machine": "a processor, 2 cores", "command": "python eval/benchmark_quantizations.py outputs/nano"}
    return assemble(Measurements(found, {}), reports, title="Quantizations of a sample", facts=facts)
