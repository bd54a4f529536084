"""Reading split files: TRL prompt-completion rows, each checked against the schema and the prompts.

Tokens are counted where a tokenizer is (`observer.training.rows`); splitting raw rows belongs to `observer.data.synth`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from observer.data.importing import read_raw_rows
from observer.data.raw_rows import is_split_row, values_of_file
from observer.errors import ObserverError, raise_all
from observer.files import parse_json
from observer.prompts import CUES, SYSTEM_PROMPT, Task, clean, training_row
from observer.schema import Extraction, Label, describe_fault

REQUIRED_KEYS = frozenset({"prompt", "completion", "task"})
PROVENANCE_KEYS = frozenset({"id", "family", "slices", "unseen", "origin"})
_ADVICE = "`observer data split RAW --out DIR` writes such rows of raw ones"
PlacedLines = list[tuple[str, dict[str, Any]]]
"""Rows of a split file, each with the `file:line` where it stands, or of the raw row that it was made of."""


def read_split(path: Path) -> list[dict[str, Any]]:
    """The rows of `data/train.jsonl` or `data/val.jsonl`. Raises ObserverError naming every faulty line."""
    rows, faults = scan_split(path)
    raise_all(faults)
    return [row for _, row in rows]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a split file, or raw rows, repaired as for training and turned into them.

    Raises ObserverError naming every faulty line.
    """
    if any(is_split_row(value.value) for value in values_of_file(path)):
        return read_split(path)
    return [training_row(placed.row) for placed in read_raw_rows([path]).rows]


def read_part(path: Path, part: Literal["train", "val"]) -> list[dict[str, Any]]:
    """Of raw rows that say their part in `source` (`natural/train`), those of one, as training rows."""
    return [row for _, row in place_part(path, part)]


def place_part(path: Path, part: Literal["train", "val"]) -> PlacedLines:
    """The same with `file:line` of each."""
    return [(one.place, training_row(one.row)) for one in read_raw_rows([path]).rows if one.row.part == part]


def scan_split(path: Path) -> tuple[PlacedLines, list[str]]:
    """The sound rows with their places, and every fault as `file:line: what`."""
    if not path.exists():
        raise ObserverError(f"{path}: no such file; `observer data generate` writes the shipped ones, or name another")
    sound: PlacedLines = []
    faults: list[str] = []
    values = [*values_of_file(path)]
    for value in values:
        found = [value.fault] if value.fault else row_faults(value.value)
        faults += [f"{value.place}: {fault}" for fault in found]
        if not found:
            sound.append((value.place, value.value))
    if not values:
        faults.append(f"{path}: no rows; one JSON object a line is expected")
    return sound, faults


def row_faults(row: Any) -> list[str]:
    """What keeps a row from being trained on, in words a person can act on."""
    if not isinstance(row, dict):
        return [f"found a {type(row).__name__}; one JSON object a line is expected"]
    faults = [f"{key}: missing" for key in sorted(REQUIRED_KEYS - row.keys())]
    faults += [f"{key}: unknown field" for key in sorted(row.keys() - REQUIRED_KEYS - PROVENANCE_KEYS)]
    if faults:
        return faults
    if row["task"] not in list(Task):
        return [f"task: unknown value {row['task']!r}; allowed: {', '.join(Task)}"]
    prompt_faults = message_faults("prompt", row["prompt"], ("system", "user"))
    completion_faults = message_faults("completion", row["completion"], ("assistant",))
    if not prompt_faults and row["prompt"][0]["content"] != SYSTEM_PROMPT:
        prompt_faults.append(f"prompt: not our system prompt, but an older one or your own; {_ADVICE}")
    elif not prompt_faults and not row["prompt"][1]["content"].endswith(f"\n{CUES[row['task']]}"):
        prompt_faults.append(
            f"prompt: does not end with the line {CUES[row['task']]!r} of task {row['task']}; {_ADVICE}"
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
            faults.append(f"{field}.{role}: holds control-token or unnormalized text; {_ADVICE}")
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
        faults.append(f"completion: not our compact JSON (key order, spaces); {_ADVICE}")
    return faults
