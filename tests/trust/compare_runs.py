"""What two runs have in common: losses by step, artefacts by their bytes, evaluation by its scores and answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from observer.errors import ObserverError
from observer.files import read_jsonl, read_text, sha256_file

METRICS = "metrics.jsonl"
TIMES = frozenset({"elapsed_s"})
"""Fields of a step that tell of the run, not of its result."""
SCORES = ("grading", "baselines", "extraction", "unconstrained", "n_truncated", "slices", "unseen", "unfinished")
"""Fields of an evaluation that are its result; the others are dates, paths, machine and speed."""
ANSWERS_SUFFIX = ".answers.jsonl"
_KINDS = {
    "GGUF files": ("gguf/*.gguf", "*-imatrix.gguf"),
    "Modelfiles": ("Modelfile*", "gguf/Modelfile*"),
    "other files": ("adapter/*.safetensors", "adapter/*.json", "merged/*", "data/*", f"reports/*{ANSWERS_SUFFIX}"),
}


@dataclass
class Comparison:
    """`counts` of what was compared, and a line for each thing that differs or that one run lacks."""

    counts: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


def compare_runs(one: Path, two: Path) -> Comparison:
    """Compare the folders of two runs. Raises ObserverError when a run has no metrics: it did not train."""
    for run in (one, two):
        if not (run / METRICS).exists():
            raise ObserverError(f"{run}: no {METRICS}, so no finished run; two runs of one config are compared")
    found = Comparison()
    found.counts["steps"] = _compare_steps(one / METRICS, two / METRICS, found.differences)
    for kind, patterns in _KINDS.items():
        found.counts[kind] = _compare_files(one, two, patterns, found.differences)
    found.counts["scores"] = _compare_scores(one, two, found.differences)
    return found


def _compare_steps(one: Path, two: Path, differences: list[str]) -> int:
    """The first step that differs is told: those after it follow from it."""
    steps = [[_without_times(row) for _, row in read_jsonl(path)] for path in (one, two)]
    for mine, other in zip_longest(*steps):
        if mine != other:
            names = sorted(
                name for name in {*(mine or {}), *(other or {})} if (mine or {}).get(name) != (other or {}).get(name)
            )
            differences.append(f"{METRICS}: step {(mine or other)['step']}: {', '.join(names)}")
            break
    return sum("loss" in row for row in steps[0])


def _without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMES}


def _compare_files(one: Path, two: Path, patterns: tuple[str, ...], differences: list[str]) -> int:
    names = {
        path.relative_to(run).as_posix()
        for run in (one, two)
        for pattern in patterns
        for path in run.glob(pattern)
        if path.is_file()
    }
    for name in sorted(names):
        missing = [_name(run, one, two) for run in (one, two) if not (run / name).exists()]
        if missing:
            differences.append(f"{name}: missing in {missing[0]}")
        elif _content(one / name) != _content(two / name):
            differences.append(f"{name}: other bytes")
    return len(names)


def _name(run: Path, one: Path, two: Path) -> str:
    """What tells the two folders apart: runs of one config have the same name."""
    return run.name if one.name != two.name else run.parent.name


def _content(path: Path) -> str:
    """What stands for a file's bytes; the first line of saved answers tells where and when, and is left out."""
    if path.name.endswith(ANSWERS_SUFFIX):
        return read_text(path).partition("\n")[2]
    return sha256_file(path)


def _compare_scores(one: Path, two: Path, differences: list[str]) -> int:
    n_scores = 0
    for name in sorted({path.name for run in (one, two) for path in run.glob("reports/evaluation-*.json")}):
        scores = [dict(_scores(run / "reports" / name)) for run in (one, two)]
        n_scores += len(scores[0])
        unlike = sorted(key for key in {*scores[0], *scores[1]} if scores[0].get(key) != scores[1].get(key))
        if unlike:
            differences.append(f"reports/{name}: {len(unlike)} of {len(scores[0])} scores, first {unlike[0]}")
    return n_scores


def _scores(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, value) of every number and word in the result, such as (`grading.macro_f1`, 0.83); none without a file."""
    if path.exists():
        report = json.loads(read_text(path))
        for name in SCORES:
            yield from _flat(name, report.get(name))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}", part)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _flat(f"{name}[{number}]", part)
    elif value is not None:
        yield name, value
