"""What is observed and what comes of it: an exchange goes in, an observation comes out.

Plain frozen data that dumps to JSON and reads back; who makes it is `client`'s, what becomes of it `memory`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from observer.schema import EntityType, Label, Predicate, Relationship, Temporal, Turn, canonical_triple

Probability = Annotated[float, Field(ge=0, le=1)]
Asked = Literal["grade", "extract", "observe"]
"""What was asked of the model; `observe` grades, and extracts unless the grade is DISCARD."""


_EPOCH = re.compile(r"\d{10}(\d{3}|\d{6}|\d{9})?(\.\d+)?")
_ORDINAL_DATE = re.compile(r"(\d{4})-(\d{3})(?!\d)(.*)")
_NO_TIME = PydanticCustomError(
    "time", "a time such as 2026-11-22T18:30Z, or seconds since 1970 in ten digits (milliseconds: 13), is expected"
)


def read_time(value: Any) -> datetime | None:
    """When a message was written: ISO 8601 with a whole date, extended or basic, or seconds, milli-, micro- or
    nanoseconds since 1970; None and empty text are no time. Raises ValueError for all else: `2026`, `5/6/2026`."""
    if value is None or isinstance(value, datetime):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _NO_TIME
    text = str(value).strip().upper()
    try:
        if epoch := _EPOCH.fullmatch(text):
            return datetime.fromtimestamp(float(text) / 10 ** len(epoch[1] or ""), UTC)
        if isinstance(value, str):
            return _read_iso(text) if text else None
    except (ValueError, OverflowError):
        pass
    raise _NO_TIME


def _read_iso(text: str) -> datetime:
    text = re.sub(r" ?(?:Z|UTC|GMT)$", "+00:00", re.sub(r" (?=[+-]\d\d:?\d\d$)", "", text))
    if date := _ORDINAL_DATE.fullmatch(text):
        day = datetime(int(date[1]), 1, 1) + timedelta(days=int(date[2]) - 1)
        if day.year != int(date[1]):
            raise ValueError(text)
        text = day.date().isoformat() + date[3]
    return datetime.strptime(text, "%Y%m%d%H%M%S") if re.fullmatch(r"\d{14}", text) else datetime.fromisoformat(text)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Exchange(_Frozen):
    """A user message, the reply to it (or none) and the turns before; `at` is when the user message was written."""

    user_message: str
    assistant_message: str = ""
    context: list[Turn] = []
    at: Annotated[datetime | None, BeforeValidator(read_time)] = None
    id: str | None = None


class Span(_Frozen):
    """Characters `start` to `end` (exclusive) of one message as the caller gave it, before redaction."""

    message: str = Field(pattern=r"^(context\[\d+\]|user|assistant)$")
    start: int = Field(ge=0)
    end: int

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.end <= self.start:
            raise ValueError("a span holds at least one character")
        return self


class GradeResult(_Frozen):
    """`confidence` is the label's own probability. Both are None when the backend does not tell."""

    label: Label
    probabilities: dict[Label, Probability] | None = None
    confidence: Probability | None = None


class ObservedEntity(_Frozen):
    """A named thing; `spans` are all places where the name stands. `User` is grounded without any."""

    name: str
    type: EntityType
    attributes: dict[str, str] = {}
    spans: list[Span] = []
    is_grounded: bool


class ObservedRelationship(_Frozen):
    """`valid_at` is when it began to hold, `invalid_at` when it ceased; None is not known.

    `observer.turns.time_expressions` has the rules. `stated_by` is who wrote the names and the `when` of it in the
    exchange; None when they stand nowhere there.
    """

    subject: str
    predicate: Predicate
    object: str
    temporal: Temporal
    when: str | None = None
    valid_at: datetime | None = None
    invalid_at: datetime | None = None
    stated_by: Literal["user", "assistant", "both"] | None = None
    confidence: Probability | None = None


def relation_key(relation: Relationship | ObservedRelationship) -> tuple[str, ...]:
    """Relationships with the same key say the same; `when` is left out."""
    return *canonical_triple(relation.subject, relation.predicate, relation.object), str(relation.temporal)


class Redaction(_Frozen):
    """A secret that no model saw, and what kind it is; the text of it is nowhere in an observation."""

    kind: str
    span: Span


def id_of_another(id: str, text_hash: str) -> str:
    """The id of an exchange whose own id was another's before."""
    return f"{id}@{text_hash[:8]}"


class Observation(_Frozen):
    """`grade` is None when only extraction was asked for; there is nothing extracted from a DISCARD.

    `truncated`: the answer reached its bound; `fault`: why an answer could not be read as a whole. What stood
    whole before is here in both cases. `repeated`: the model said nothing new any more, and its list was ended there.
    `context_cut`: so many of the oldest context turns the model was not shown, for want of room. `at` and `id` are the
    exchange's. `text_hash` is of its messages, secrets blanked, and of `at`: an id that stands for another text is
    another exchange's.
    """

    task: Asked = "observe"
    grade: GradeResult | None = None
    entities: list[ObservedEntity] = []
    relationships: list[ObservedRelationship] = []
    redactions: list[Redaction] = []
    truncated: bool = False
    repeated: bool = False
    context_cut: int = 0
    fault: str | None = None
    model: str
    at: datetime | None = None
    id: str | None = None
    text_hash: str | None = None


Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""


@dataclass(frozen=True)
class Grade:
    """The label, and how likely each is among all."""

    label: Label
    probabilities: dict[Label, float]


def grade_of(probabilities: dict[Label, float], keep_above: float | None = None) -> Grade:
    """The likeliest label. With `keep_above`, DISCARD unless the others' probability together is above it, and then
    the likelier of the others."""
    kept = {label: share for label, share in probabilities.items() if label is not Label.DISCARD}
    if keep_above is None:
        kept = probabilities
    elif sum(kept.values()) <= keep_above:
        kept = {Label.DISCARD: 1.0}
    return Grade(max(kept, key=lambda label: kept[label]), probabilities)


MAX_NEW_TOKENS = 512
"""Tokens that an answer may take unless another bound is given."""
EXPECTED_ANSWER = 128
"""Tokens that a usual answer takes; few take more."""


@dataclass(frozen=True)
class Completion:
    """One generated answer; `tokens` leaves out the end token, `truncated` means that none came in time.

    `logprobs` are the natural log-probabilities of `tokens` under the model's own distribution, before the grammar;
    None where they were not asked for or are unknown. A backend that knows no token ids leaves `tokens` empty.
    `repeated`: the model said nothing new any more in a list, and the engine ended the list there.
    """

    text: str
    tokens: tuple[int, ...]
    truncated: bool
    logprobs: tuple[float, ...] | None = None
    repeated: bool = False

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Reading:
    """Both answers about one exchange; no completion where the grade is DISCARD."""

    grade: Grade
    completion: Completion | None


def no_progress(_done: int, _total: int) -> None:
    """For callers that show none."""
