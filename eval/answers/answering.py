"""What a model answered to which rows: asked once, saved as JSONL, scored and compared as often as you like."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from eval.answers.origin import Machine, ModelInfo, file_name, this_machine
from eval.answers.rows import Row, answer_of, of_task, spread
from observer.console.progress import show_progress
from observer.errors import ObserverError, RowsError, raise_all
from observer.files import read_jsonl, write_jsonl
from observer.observation import Completion, Grade
from observer.prompts import Task, exchange_of, prompt_messages
from observer.runs.manifest import environment
from observer.schema import describe_fault

if TYPE_CHECKING:
    from observer.backends.base import Backend

UNCONSTRAINED_SAMPLE = 64
SAVED_SUFFIX = "answers.jsonl"
FORMAT = 1
"""Version of the saved form, in its first line."""
_PROVENANCE = ("id", "family", "slices", "unseen", "origin")


@dataclass(frozen=True)
class Answers:
    """One model's answers to one split, in the rows' order.

    `unconstrained` are answers without the grammar, by the index of their extraction row. `seconds` by task: prompts
    included, loading left out. `unfinished` names the tasks that a run cut short did not get to.
    """

    model: ModelInfo
    split: str
    date: str
    machine: Machine
    environment: dict[str, Any]
    grade_rows: list[Row] = field(default_factory=list)
    grades: list[Grade] = field(default_factory=list)
    extract_rows: list[Row] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    unconstrained: dict[int, Completion] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()


_HEAD, _GRADE, _COMPLETION = TypeAdapter(Answers), TypeAdapter(Grade), TypeAdapter(Completion)


def answer_rows(
    backend: Backend,
    rows: Sequence[Row],
    *,
    split: str = "val",
    model: ModelInfo | None = None,
    keep_in: Path | None = None,
    n_unconstrained: int = UNCONSTRAINED_SAMPLE,
) -> Answers:
    """Ask both tasks of `rows`, and extraction again without its grammar for an even sample of `n_unconstrained`.

    `keep_in`: where the answers are saved, after each task: Ctrl-C loses only the task at work.
    Raises ObserverError for rows that have no answer, such as one too long for the model.
    """
    parts = {task: of_task(rows, task) for task in Task}
    answers = Answers(
        model=model or describe_model(backend),
        split=split,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=this_machine(getattr(backend, "n_threads", None)),
        environment=environment(),
        unfinished=tuple(str(task) for task in Task if parts[task]),
    )
    try:
        for task in Task:
            if parts[task]:
                answered = _grade if task == Task.GRADE else _extract
                answers = answered(backend, answers, parts[task], n_unconstrained)
                if keep_in:
                    save_answers(answers, keep_in)
    except KeyboardInterrupt:
        if keep_in and answers.seconds:
            done = " and ".join(answers.seconds)
            print(f"\n{done}: answers kept; eval/evaluate.py --model {keep_in} scores them", file=sys.stderr)
        raise
    return answers


def describe_model(backend: Backend, spec: str | None = None) -> ModelInfo:
    """A GGUF by its own header; other backends by their name, or by the `spec` that opened them."""
    from observer.backends.ollama import OllamaBackend
    from observer.engine.engine import Engine

    if isinstance(backend, Engine):
        return _describe_gguf(backend)
    served_by = backend.served_by if isinstance(backend, OllamaBackend) else ""
    spec = spec or backend.name
    path = Path(spec.removeprefix("hf:"))
    size_bytes = sum(f.stat().st_size for f in path.glob("*.safetensors")) if path.is_dir() else None
    return ModelInfo(spec, backend.name, file_name(spec), size_bytes, "nano" in backend.name.casefold(), served_by)


def save_answers(answers: Answers, path: Path) -> None:
    """A first line on the model and the run, then a line for each row, its gold beside the answer; atomic."""
    head = {"format": FORMAT} | {
        name: getattr(answers, name) for name in ("split", "date", "environment", "seconds", "unfinished")
    }
    head |= {"model": asdict(answers.model), "machine": asdict(answers.machine)}
    grades = zip(answers.grade_rows, answers.grades, strict=True)
    lines = [_row_line(row) | {"label": grade.label, "probabilities": grade.probabilities} for row, grade in grades]
    for index, (row, completion) in enumerate(zip(answers.extract_rows, answers.completions, strict=True)):
        free = answers.unconstrained.get(index)
        lines.append(_row_line(row) | asdict(completion) | ({"unconstrained": asdict(free)} if free else {}))
    write_jsonl(path, [head, *lines], is_private=True)


def load_answers(path: Path) -> Answers:
    """What `save_answers` wrote, the rows rebuilt as those of a split. Raises ObserverError naming faulty lines."""
    lines = read_jsonl(path)
    if not lines or lines[0][1].get("format") != FORMAT:
        raise ObserverError(f"{path}: no saved answers of this version; eval/evaluate.py writes them")
    head, faults = lines[0][1], []
    grades: list[tuple[Row, Grade]] = []
    completions: list[tuple[Row, Completion]] = []
    unconstrained: dict[int, Completion] = {}
    for number, line in lines[1:]:
        try:
            row = _row_of(line)
            if line["task"] == Task.GRADE:
                grades.append((row, _GRADE.validate_python(line)))
                continue
            if "unconstrained" in line:
                unconstrained[len(completions)] = _COMPLETION.validate_python(line["unconstrained"])
            completions.append((row, _COMPLETION.validate_python(line)))
        except ValidationError as error:
            faults += _words(f"{path}:{number}", error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            faults.append(f"{path}:{number}: not an answer ({type(error).__name__}: {error}); evaluate the model again")
    raise_all(faults)
    try:
        known = _HEAD.validate_python(head)
    except ValidationError as error:
        raise_all(_words(f"{path}:1", error))
        raise
    return replace(
        known,
        grade_rows=[row for row, _ in grades],
        grades=[grade for _, grade in grades],
        extract_rows=[row for row, _ in completions],
        completions=[completion for _, completion in completions],
        unconstrained=unconstrained,
    )


def _grade(backend: Backend, answers: Answers, rows: list[Row], _: int) -> Answers:
    with show_progress("grading", len(rows)) as progress, _naming(rows):
        start = time.perf_counter()
        grades = backend.grade([exchange_of(row) for row in rows], progress=progress)
        seconds = answers.seconds | {str(Task.GRADE): time.perf_counter() - start}
    return _finished(replace(answers, grade_rows=rows, grades=grades, seconds=seconds), Task.GRADE)


def _extract(backend: Backend, answers: Answers, rows: list[Row], n_unconstrained: int) -> Answers:
    exchanges = [exchange_of(row) for row in rows]
    with show_progress("extracting", len(rows)) as progress, _naming(rows):
        start = time.perf_counter()
        completions = backend.extract(exchanges, constrained=True, progress=progress)
        seconds = answers.seconds | {str(Task.EXTRACT): time.perf_counter() - start}
    sample = spread(len(rows), n_unconstrained)
    with show_progress("extracting, no grammar", len(sample)) as progress:
        chosen = [exchanges[index] for index in sample]
        free = backend.extract(chosen, constrained=False, progress=progress) if sample else []
    return _finished(
        replace(
            answers,
            extract_rows=rows,
            completions=completions,
            unconstrained=dict(zip(sample, free, strict=True)),
            seconds=seconds,
        ),
        Task.EXTRACT,
    )


@contextlib.contextmanager
def _naming(rows: Sequence[Row]) -> Iterator[None]:
    """Name the rows that can have no answer as their file does."""
    try:
        yield
    except RowsError as error:
        raise_all([f"{rows[n]['task']} row {rows[n].get('id') or n}: {fault}" for n, fault in error.faults.items()])


def _finished(answers: Answers, task: Task) -> Answers:
    return replace(answers, unfinished=tuple(name for name in answers.unfinished if name != task))


def _row_line(row: Row) -> dict[str, Any]:
    known = {name: row[name] for name in ("task", *_PROVENANCE) if name in row}
    return known | {"exchange": exchange_of(row), "gold": answer_of(row)}


def _row_of(line: dict[str, Any]) -> Row:
    row: Row = {
        "prompt": prompt_messages(Task(line["task"]), line["exchange"]),
        "completion": [{"role": "assistant", "content": line["gold"]}],
    }
    return row | {name: line[name] for name in ("task", *_PROVENANCE) if name in line}


def _words(place: str, error: ValidationError) -> list[str]:
    return [f"{place}: {describe_fault(fault)}; evaluate the model again" for fault in error.errors()]


def _describe_gguf(engine: Any) -> ModelInfo:
    from gguf import LlamaFileType

    path: Path = engine.model.path
    name = engine.model.metadata("general.name") or path.stem
    number = int(engine.model.metadata("general.file_type") or -1)
    known = {int(file_type): file_type.name.lower() for file_type in LlamaFileType}
    file_type = known.get(number, "unknown").removeprefix("mostly_").removeprefix("all_")
    return ModelInfo(str(path), name, file_type, path.stat().st_size, "nano" in name.casefold())
