"""What a memory holds: facts with two times each, when they hold in the world and when a conversation told us."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict

from observer.observation import ObservedRelationship
from observer.schema import EntityType, Predicate, Temporal, canonical_triple

Key = tuple[str, str, str]
"""Subject, predicate and object as `schema.canonical_triple` gives them: what makes two facts the same."""

_NAMESPACE = uuid.UUID("0f7d6b0e-4a51-5a0c-9d6e-6d5f0b5c6a11")


class OperationKind(StrEnum):
    ADD = "ADD"
    INVALIDATE = "INVALIDATE"
    NOOP = "NOOP"


class Reason(StrEnum):
    """Why an operation is what it is; all but the first and the last two also say why a fact ended."""

    NEW = "new"
    STATED = "stated"
    """The conversation says that it is over."""
    SUPERSEDED = "superseded"
    """There is one at a time, and another was stated later."""
    CONTRADICTED = "contradicted"
    """The opposite was stated later."""
    CAME_TRUE = "came_true"
    """A plan that is now so, or done."""
    CALLED_OFF = "called_off"
    """A plan that was said to be over before its time had come."""
    CLOSED = "closed"
    """A plan without a date that was said to be over: it came true or was called off, and nothing says which."""
    MERGED = "merged"
    """What was read late shows it to be one with another fact."""
    FORGOTTEN = "forgotten"
    """Somebody asked to forget it."""
    KNOWN = "known"
    UNGROUNDED = "ungrounded"
    """A name of it stands nowhere in the text, or is a pronoun: not remembered."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fact(_Frozen):
    """One triple, in canonical direction, with names as they were first written.

    `valid_at` and `invalid_at` are when it began and ceased to hold, None where no conversation told. `ended_at` is
    the time of the conversation that ended it: None says that it is current. `first_seen` and `last_seen` are times of
    conversations too. All times have a zone. `temporal` is as the first of the conversations stated it.
    """

    id: str
    subject: str
    predicate: Predicate
    object: str
    subject_type: EntityType | None = None
    object_type: EntityType | None = None
    temporal: Temporal
    when: str | None = None
    valid_at: AwareDatetime | None = None
    invalid_at: AwareDatetime | None = None
    first_seen: AwareDatetime
    last_seen: AwareDatetime
    ended_at: AwareDatetime | None = None
    ended_by: Reason | None = None
    stated_by: Literal["user", "assistant", "both"] | None = None
    confidence: float | None = None

    @property
    def key(self) -> Key:
        return canonical_triple(self.subject, str(self.predicate), self.object)

    @property
    def is_current(self) -> bool:
        return self.ended_at is None

    @property
    def told_at(self) -> datetime:
        """The time of the last conversation that changed it."""
        return max(self.last_seen, self.ended_at or self.last_seen)

    @property
    def state(self) -> str:
        """`ongoing`, `future` or, once ended, why it is over."""
        if self.ended_by in (None, Reason.STATED):
            return str(self.temporal) if self.is_current else str(Temporal.COMPLETED)
        return str(self.ended_by)

    def as_text(self) -> str:
        """`User works at Siemens (since 2019)`: for people, and for memory systems that keep sentences."""
        sentence = f"{self.subject} {str(self.predicate).replace('_', ' ').lower()} {self.object}"
        is_plan = self.temporal is Temporal.FUTURE
        notes = [self.when, "planned" if is_plan else None, None if self.is_current else self.state.replace("_", " ")]
        return sentence + (f" ({', '.join(note for note in notes if note)})" if any(notes) else "")


class Operation(_Frozen):
    """`fact` is what the memory holds afterwards: new, ended, or seen again."""

    kind: OperationKind
    reason: Reason
    fact: Fact

    @property
    def is_stored(self) -> bool:
        return self.reason is not Reason.UNGROUNDED


class End(_Frozen):
    """The end of what is current of a key, where no relationship tells it: somebody asked to forget it, or what it
    gave way to has been deleted, which ended it only as `temporal`: a home gives way to another, a plan of it does not.
    """

    key: Key
    temporal: Temporal
    reason: Reason
    invalid_at: AwareDatetime | None = None

    @classmethod
    def of(cls, fact: Fact) -> Self:
        """As a fact that is over has it."""
        assert fact.ended_by
        return cls(key=fact.key, temporal=fact.temporal, reason=fact.ended_by, invalid_at=fact.invalid_at)


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; one without a zone, or beyond the calendar in UTC, counts as UTC."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:  # hours before the year 1, or after 9999
        return moment.replace(tzinfo=UTC)


def key_of(relationship: ObservedRelationship) -> Key:
    return canonical_triple(relationship.subject, str(relationship.predicate), relationship.object)


def fact_of(relationship: ObservedRelationship, types: Mapping[str, EntityType], seen_at: datetime) -> Fact:
    """The fact that a relationship states, with the id of the first fact of its key. `types` are those of names."""
    names, key = (relationship.subject, relationship.object), key_of(relationship)
    subject, obj = names if names[0].casefold() == key[0] else (names[1], names[0])
    return Fact(
        id=fact_id(key, 0),
        subject=subject,
        predicate=Predicate(key[1]),
        object=obj,
        subject_type=types.get(subject),
        object_type=types.get(obj),
        temporal=relationship.temporal,
        when=relationship.when,
        valid_at=relationship.valid_at and in_utc(relationship.valid_at),
        invalid_at=relationship.invalid_at and in_utc(relationship.invalid_at),
        first_seen=seen_at,
        last_seen=seen_at,
        stated_by=relationship.stated_by,
        confidence=relationship.confidence,
    )


def in_order(facts: Iterable[Fact]) -> list[Fact]:
    """As they became known."""
    return sorted(facts, key=lambda fact: (fact.first_seen, fact.id))


def fact_id(key: Key, number: int) -> str:
    """The id of the `number`-th fact of a key in order of time, from 0; the same in every memory."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((*key, str(number)))))
