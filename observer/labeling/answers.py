"""Is an answer fit to be gold? Its JSON, the schema, and whether the conversation holds what it names."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from observer.files import parse_json
from observer.labeling.answers_file import Answer
from observer.labeling.prompts import GradingAnswer
from observer.prompts import Task, clean
from observer.schema import USER, Extraction, describe_fault
from observer.turns.pronouns import is_nobodys_name, is_user

_THOUGHT = re.compile(
    r"</(?:seed:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
"""Where the thinking of Qwen, DeepSeek, Seed, Magistral, Kimi and gpt-oss ends."""
_MARKERS = re.compile(r"^(?:USER|ASSISTANT): ", re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """A sound value, or the fault of the answer and whether telling it to the model may help."""

    value: GradingAnswer | Extraction | None
    fault: str = ""
    may_retry: bool = False


def judge(task: Task, answer: Answer, exchange: str) -> Verdict:
    """Check one answer against the schema and the exchange that it is about."""
    if answer.refusal or answer.is_filtered:
        return _unfit(f"the model refused: {answer.refusal or 'content filter'}", may_retry=False)
    if answer.is_cut_off:
        return _unfit(f"the answer was cut off after {answer.completion_tokens:,} tokens", may_retry=False)
    try:
        value = _load_answer(answer.text)
        found = _without_empty(value)
    except (ValueError, RecursionError) as error:
        return _unfit(f"not JSON ({error})")
    kind = GradingAnswer if task == Task.GRADE else Extraction
    try:
        parsed = kind.model_validate(found)
    except ValidationError as error:
        return _unfit("; ".join(describe_fault(fault) for fault in error.errors()))
    faults = extraction_faults(parsed, exchange, value) if isinstance(parsed, Extraction) else []
    return _unfit("; ".join(faults)) if faults else Verdict(parsed)


def _unfit(fault: str, *, may_retry: bool = True) -> Verdict:
    return Verdict(None, fault[:600], may_retry)  # an answer may hold any number of faults


def extraction_faults(extraction: Extraction, exchange: str, value: Any) -> list[str]:
    """What the types do not check: missing lists, endpoints, and names or times that the text does not contain."""
    faults = [f"{key}: missing" for key in ("entities", "relationships") if key not in value] + extraction.faults()
    text = _comparable(_MARKERS.sub("", exchange))
    for entity in extraction.entities:
        if entity.name == USER:
            continue
        if is_user(entity.name, text):
            faults.append(f"entity name {entity.name!r} is the speaker; write {USER}")
        elif is_nobodys_name(entity.name, text):
            faults.append(f"entity name {entity.name!r} is a pronoun; write who is meant, or leave out what it states")
        elif not _is_in(entity.name, text):
            faults.append(f"entity name {entity.name!r} is not in the conversation; copy names letter by letter")
    for when in sorted({relation.when for relation in extraction.relationships if relation.when}):
        if not _is_in(when, text):
            faults.append(f"when {when!r} is not in the conversation; copy it letter by letter, or leave it out")
    return faults


def _is_in(name: str, text: str) -> bool:
    part = _comparable(clean(name))
    return bool(part) and part in text


def _comparable(text: str) -> str:
    return " ".join(text.casefold().split())


def _load_answer(text: str) -> Any:
    """The JSON of an answer, or the one object in what servers without structured output write around it.

    That is thinking, opened in the answer or in the prompt, a code fence, and words before or after. Two objects are
    no JSON. Raises ValueError.
    """
    with contextlib.suppress(ValueError):
        return parse_json(text)
    text = _THOUGHT.split(text)[-1]
    start, end = text.find("{"), text.rfind("}") + 1
    return parse_json(text[start:end] if 0 <= start < end else text)


def _without_empty(value: Any) -> Any:
    """Optional fields come as null from a strict schema; they are left out."""
    if isinstance(value, dict):
        return {key: _without_empty(child) for key, child in value.items() if child is not None and child != ""}
    return [_without_empty(child) for child in value] if isinstance(value, list) else value
