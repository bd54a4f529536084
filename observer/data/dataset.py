"""Reading split files: TRL prompt-completion rows, each checked against the schema and the prompts.

Tokens are counted where a tokenizer is (`observer.training.rows`); splitting raw rows belongs to `observer.data.synth`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from observer.errors import ObserverError, raise_all
from observer.files import parse_json, scan_jsonl
from observer.prompts import CUES, SYSTEM_PROMPT, Task, clean, training_row
from observer.schema import Extraction, Label, RawRow, describe_fault, parse_rows

REQUIRED_KEYS = frozenset({"prompt", "completion", "task"})
PROVENANCE_KEYS = frozenset({"id", "family", "slices", "unseen", "origin"})


def read_split(path: Path) -> list[dict[str, Any]]:
    """The rows of `data/train.jsonl` or `data/val.jsonl`. Raises ObserverError naming every faulty line."""
    rows, faults = scan_split(path)
    raise_all(faults)
    return [row for _, row in rows]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a split file, or raw rows turned into them. Raises ObserverError naming every faulty line."""
    numbered, faults = scan_jsonl(path)
    if any("prompt" in row or "completion" in row for _, row in numbered) or not numbered:
        return read_split(path)
    return [training_row(row) for _, row in _parse_all(path, numbered, faults)]


def read_part(path: Path, part: Literal["train", "val"]) -> list[dict[str, Any]]:
    """Of raw rows that say their part in `source` (`natural/train`), those of one, as training rows."""
    return [row for _, row in place_part(path, part)]


def place_part(path: Path, part: Literal["train", "val"]) -> list[tuple[str, dict[str, Any]]]:
    """The same with `file:line` of each. Rows that name no part are train's."""
    rows = _parse_all(path, *scan_jsonl(path))
    return [(place, training_row(row)) for place, row in rows if (part == "val") == (row.source or "").endswith("/val")]


def _parse_all(
    path: Path, numbered: Sequence[tuple[int, dict[str, Any]]], faults: Sequence[str]
) -> list[tuple[str, RawRow]]:
    """Raw rows with `file:line` of each. Raises ObserverError naming every faulty line."""
    parsed = [(number, *parse_rows(value)) for number, value in numbered]
    raise_all([*faults, *(f"{path}:{number}: {fault}" for number, _, found in parsed for fault in found)])
    return [(f"{path}:{number}", row) for number, rows, _ in parsed for row in rows]


def scan_split(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    """The sound rows with their line numbers, and every fault as `file:line: what`."""
    if not path.exists():
        raise ObserverError(f"{path}: no such file; `observer data generate` writes the shipped ones, or name another")
    rows, faults = scan_jsonl(path)
    sound: list[tuple[int, dict[str, Any]]] = []
    for number, row in rows:
        found = row_faults(row)
        faults += [f"{path}:{number}: {fault}" for fault in found]
        if not found:
            sound.append((number, row))
    if not rows and not faults:
        faults.append(f"{path}: no rows; one JSON object a line is expected")
    return sound, faults


def row_faults(row: dict[str, Any]) -> list[str]:
    """What keeps a row from being trained on, in words a person can act on."""
    faults = [f"{key}: missing" for key in sorted(REQUIRED_KEYS - row.keys())]
    faults += [f"{key}: unknown field" for key in sorted(row.keys() - REQUIRED_KEYS - PROVENANCE_KEYS)]
    if faults:
        return faults
    if row["task"] not in list(Task):
        return [f"task: unknown value {row['task']!r}; allowed: {', '.join(Task)}"]
    prompt_faults = message_faults("prompt", row["prompt"], ("system", "user"))
    completion_faults = message_faults("completion", row["completion"], ("assistant",))
    if not prompt_faults and row["prompt"][0]["content"] != SYSTEM_PROMPT:
        prompt_faults.append("prompt: not our system prompt; write rows with training_row")
    elif not prompt_faults and not row["prompt"][1]["content"].endswith(f"\n{CUES[row['task']]}"):
        prompt_faults.append(
            f"prompt: does not end with the line {CUES[row['task']]!r} of task {row['task']}; "
            "write rows with training_row"
        )
    if not completion_faults:
        completion_faults = answer_faults(row["task"], row["completion"][0]["content"])
    return prompt_faults + completion_faults


def message_faults(field: str, messages: Any, roles: tuple[str, ...]) -> list[str]:
    """Faults of a message list that must hold exactly `roles`, each with clean text."""
    expected = f"{field}: messages of {' and '.join(roles)} are expected"
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return [f"{expected}, found {str(messages)[:60]!r}"]
    if tuple(message.get("role") for message in messages) != roles:
        return [f"{expected}, found {[message.get('role') for message in messages]}"]
    faults = []
    for role, message in zip(roles, messages, strict=True):
        content = message.get("content")
        if not isinstance(content, str) or not content:
            faults.append(f"{field}.{role}: text is expected, found {str(content)[:60]!r}")
        elif clean(content) != content:
            faults.append(f"{field}.{role}: holds control-token or unnormalized text; write rows with training_row")
    return faults


def answer_faults(task: str, answer: str) -> list[str]:
    """Faults of a label, or of an extraction's compact JSON."""
    if task == Task.GRADE:
        allowed = ", ".join(Label)
        return [] if answer in list(Label) else [f"completion: unknown label {answer[:60]!r}; allowed: {allowed}"]
    try:
        extraction = Extraction.model_validate(parse_json(answer))
    except json.JSONDecodeError as error:
        return [f"completion: not JSON ({error})"]
    except ValidationError as error:
        return [f"completion: {describe_fault(fault)}" for fault in error.errors()]
    faults = [f"completion: {fault}" for fault in extraction.faults()]
    if not faults and clean(extraction.to_compact_json()) != answer:
        faults.append("completion: not our compact JSON (key order, spaces); write rows with training_row")
    return faults
