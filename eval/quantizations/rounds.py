"""Measuring the files of a benchmark: answers and divergence file by file, then speed in turns, all of it on record.

A record is a file named after everything its figures depend on (the GGUF, the rows, the code that measured), so the
same command goes on where it was cut, and what is on record is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from eval.answers.answering import Answers, answer_rows, load_answers
from eval.answers.origin import code_hash
from eval.answers.rows import Row, take
from eval.quantizations.files import Candidate
from eval.quantizations.quality import Quality, measure_quality
from eval.quantizations.speed import Speed, measure_speed
from observer.console.progress import Progress, show_progress
from observer.engine.engine import Engine
from observer.errors import ObserverError
from observer.files import read_text, sha256_file, write_json
from observer.runs.manifest import environment, fingerprint

_MEASURED_BY = {
    "answers": "eval/answers/answering.py",
    "quality": "eval/quantizations/quality.py",
    "speed": "eval/quantizations/speed.py",
}


@dataclass(frozen=True)
class Bench:
    """What is measured, on what. `candidates` begin with the reference; `folder` keeps the records."""

    candidates: list[Candidate]
    rows: list[Row]
    split: str
    folder: Path
    n_threads: int | None
    n_quality_rows: int
    """Of each task: divergence is measured at every token of a gold answer, so a part of the rows is plenty."""
    n_speed_rounds: int
    n_speed_rows: int

    @property
    def reference(self) -> Candidate:
        return self.candidates[0]


@dataclass(frozen=True)
class Measured:
    """One file. `quality` is None for the reference, and where `quality_fault` says why it cannot be told."""

    candidate: Candidate
    answers: Answers
    quality: Quality | None = None
    quality_fault: str | None = None
    speeds: list[Speed] = field(default_factory=list)
    """One a round, the rounds in order."""


@dataclass(frozen=True)
class Measurements:
    """`failures` says by name why a file could not be measured; the reference never fails without an error."""

    files: list[Measured]
    failures: dict[str, str]


def measure(bench: Bench) -> Measurements:
    """Measure every file, the reference first; one that fails is set aside, and the others go on.

    Raises ObserverError when the reference fails.
    """
    found: list[Measured] = []
    failures: dict[str, str] = {}
    with closing(Progress("answers and divergence, files", len(bench.candidates), every_s=0)) as progress:
        for candidate in bench.candidates:
            progress.say(candidate.name)
            try:
                found.append(_measure_one(bench, candidate))
            except ObserverError as error:
                if candidate is bench.reference:
                    raise
                failures[candidate.name] = str(error)
                progress.say(f"{candidate.name}: {error}")
            progress.advance()
    rounds = speed_rounds(bench, [one.candidate for one in found])
    for one in found:
        one.speeds.extend(turn[one.candidate.name] for turn in rounds)
    return Measurements(found, failures)


def speed_rounds(bench: Bench, candidates: Sequence[Candidate]) -> list[dict[str, Speed]]:
    """Name -> speed of each round, one model at work at a time.

    Every other round goes backwards, so that a machine that slows down is not held against the last. A round counts
    only as a whole, since its ratios are of one time.
    """
    rows = take(bench.rows, bench.n_speed_rows)
    files = {candidate.name: candidate.path for candidate in candidates}
    key = record_key("speed", files={n: sha256_file(path) for n, path in files.items()}, rows=rows, t=bench.n_threads)
    rounds = []
    for number in range(1, bench.n_speed_rounds + 1):
        record = bench.folder / f"speed-{key}-{number}.json"
        if not record.exists():
            turn: dict[str, Any] = {}
            with show_progress(f"speed, round {number} of {bench.n_speed_rounds}, files", len(files)) as show:
                for candidate in candidates if number % 2 else candidates[::-1]:
                    turn[candidate.name] = asdict(measure_speed(candidate.path, rows, n_threads=bench.n_threads))
                    show(len(turn), len(files))
            write_json(record, turn)
        rounds.append(TypeAdapter(dict[str, Speed]).validate_json(read_text(record)))
    return rounds


def _measure_one(bench: Bench, candidate: Candidate) -> Measured:
    answers = _answers(bench, candidate)
    if candidate is bench.reference:
        return Measured(candidate, answers)
    try:
        return Measured(candidate, answers, _quality(bench, candidate))
    except ObserverError as error:  # another vocabulary, or logits that are not finite: its answers count all the same
        return Measured(candidate, answers, quality_fault=str(error))


def _answers(bench: Bench, candidate: Candidate) -> Answers:
    key = record_key("answers", file=candidate.path, rows=bench.rows)
    record = bench.folder / f"{candidate.name}-{key}.answers.jsonl"
    if record.exists() and not (known := load_answers(record)).unfinished:
        return known
    with Engine(candidate.path, n_threads=bench.n_threads) as engine:
        return answer_rows(engine, bench.rows, split=bench.split, keep_in=record)


def _quality(bench: Bench, candidate: Candidate) -> Quality:
    rows = take(bench.rows, bench.n_quality_rows)
    key = record_key("quality", file=candidate.path, reference=bench.reference.path, rows=rows)
    record = bench.folder / f"{candidate.name}-{key}.quality.json"
    if not record.exists():
        with show_progress("divergence, percent", 100) as show:
            found = measure_quality(
                bench.reference.path, candidate.path, rows, n_threads=bench.n_threads,
                progress=lambda done, total: show(100 * done // total, 100),
            )  # fmt: skip
        write_json(record, asdict(found))
    return TypeAdapter(Quality).validate_json(read_text(record))


def record_key(kind: str, **inputs: Any) -> str:
    """Names a record of answers, quality or speed by all that it depends on."""
    version = environment()["packages"]["llama-cpp-python"]
    return fingerprint({"code": code_hash(_MEASURED_BY[kind]), "llama-cpp-python": version} | inputs)[:12]
