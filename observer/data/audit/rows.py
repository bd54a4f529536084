"""Rows as the audit sees them: raw rows and split rows alike become the turns the model is shown, and their gold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from observer.data.dataset import row_faults
from observer.data.raw_rows import Value, is_split_row, raw_rows, values_of_file
from observer.errors import ObserverError
from observer.prompts import IM_END, Task, exchange_of, render_prompt, row_completion, row_exchange, row_task
from observer.schema import Extraction, ExtractionRow, GradingRow, describe_fault
from observer.turns.conversation import Unusable

TRAIN, VAL = "train", "val"
_ROLE_MARKER = re.compile(r"^(USER|ASSISTANT): ?", re.MULTILINE)


@dataclass(frozen=True)
class AuditRow:
    """One row. `place` is `file:line`; `turns` are (role, text) in order; `extraction` is None on grading rows.

    `families` and `frames` hold the ids that a row's `family` and `frame` join with "+".
    """

    place: str
    part: str
    task: Task
    exchange: str
    completion: str
    extraction: Extraction | None
    families: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    unseen: str = ""
    tokens: int = 0

    @cached_property
    def turns(self) -> list[tuple[str, str]]:
        pieces = _ROLE_MARKER.split(self.exchange)[1:] or ["USER", self.exchange]
        texts = [piece.strip().replace("\n  ", "\n") for piece in pieces[1::2]]
        return list(zip(pieces[::2], texts, strict=True))

    @property
    def context(self) -> str:
        """The earlier turns, rendered."""
        return "\n".join(f"{role}: {text}" for role, text in self.turns[: self._last_user])

    @property
    def user_turn(self) -> str:
        return self.turns[self._last_user][1]

    @property
    def reply(self) -> str:
        """The assistant's answer to the last user turn; empty where there is none."""
        return "\n".join(text for _, text in self.turns[self._last_user + 1 :])

    @cached_property
    def _last_user(self) -> int:
        return max((i for i, (role, _) in enumerate(self.turns) if role == "USER"), default=0)


def read_rows(paths: Sequence[Path], unused: Counter[str]) -> tuple[list[AuditRow], list[str]]:
    """The readable rows of all files, and a fault for every other line. Endpoints and names are left to the audit.

    `unused` counts the fields that are ignored.
    """
    rows: list[AuditRow] = []
    faults: list[str] = []
    for path in paths:
        try:
            for value in values_of_file(path):
                found, fault = _read_value(value, path, unused)
                rows += found
                faults += [f"{value.place}: {one}" for one in fault]
        except ObserverError as error:  # missing or not UTF-8: the other files are still audited
            faults.append(str(error))
    return rows, faults


def _read_value(given: Value, path: Path, unused: Counter[str]) -> tuple[list[AuditRow], list[str]]:
    """Rows of either task, and what is wrong with them."""
    if is_split_row(given.value):
        read = [_read_split_row(given.value, given.place, path)]
    else:
        try:
            raw = raw_rows(given)
        except Unusable as error:
            return [], [str(error)]
        unused.update(raw.unused)
        read = [_read_raw_row(row, given.place, path) for row in raw.rows]
    return [row for row, _ in read if row], list(dict.fromkeys(fault for _, faults in read for fault in faults))


def _read_raw_row(value: dict[str, Any], place: str, path: Path) -> tuple[AuditRow | None, list[str]]:
    try:
        row = (GradingRow if "label" in value else ExtractionRow).model_validate({"assistant_message": ""} | value)
    except ValidationError as error:
        return None, [describe_fault(fault) for fault in error.errors()]
    part = (row.source or "").rpartition("/")[2]
    return AuditRow(
        place=place,
        part=part if part in (TRAIN, VAL) else f"{path.resolve().parent.name}-{path.stem}",
        task=row_task(row),
        exchange=row_exchange(row),
        completion=row_completion(row),
        extraction=row.extraction if isinstance(row, ExtractionRow) else None,
        families=_ids(row.family),
        frames=_ids(row.frame),
        slices=tuple(row.slices),
        names=tuple(row.names),
        unseen=row.unseen or "",
    ), []


def _read_split_row(value: dict[str, Any], place: str, path: Path) -> tuple[AuditRow | None, list[str]]:
    extraction = _read_answer(value)
    audited = {f"completion: {fault}" for fault in extraction.faults()} if extraction else set()
    faults = [fault for fault in row_faults(value) if fault not in audited]
    if not isinstance(slices := value.get("slices") or [], list):
        faults.append(f"slices: a list is expected, found {slices!r}")
    if faults:
        return None, faults
    return AuditRow(
        place=place,
        part=VAL if value.get("unseen") else path.stem,
        task=Task(value["task"]),
        exchange=exchange_of(value),
        completion=value["completion"][0]["content"],
        extraction=extraction if value["task"] == Task.EXTRACT else None,
        families=_ids(value.get("family")),
        slices=tuple(map(str, slices)),
        unseen=str(value.get("unseen") or ""),
    ), []


def _read_answer(value: dict[str, Any]) -> Extraction | None:
    """The extraction of a split row; None for a label, and for what `row_faults` refuses."""
    try:
        return Extraction.model_validate_json(value["completion"][0]["content"])
    except (KeyError, IndexError, TypeError, ValidationError):
        return None


def _ids(joined: Any) -> tuple[str, ...]:
    return tuple(str(joined).split("+")) if joined else ()


def count_tokens(rows: Sequence[AuditRow], tokenizer_json: Path) -> list[AuditRow]:
    """The rows with `tokens` of prompt and completion, tokenized apart as in training."""
    from tokenizers import Tokenizer

    if not tokenizer_json.is_file():
        raise ObserverError(f"{tokenizer_json}: no such file; name a tokenizer.json with --tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # the package raises nothing narrower
        raise ObserverError(f"{tokenizer_json}: not a tokenizer.json ({error}); name one with --tokenizer") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prompts = tokenizer.encode_batch([render_prompt(row.task, row.exchange) for row in rows], add_special_tokens=False)
    answers = tokenizer.encode_batch([row.completion + IM_END for row in rows], add_special_tokens=False)
    return [
        replace(row, tokens=len(prompt) + len(answer))
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]
