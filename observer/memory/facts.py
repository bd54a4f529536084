"""What a memory holds: facts with two times each, when they hold in the world and when a conversation told us.

A fact is never rewritten: it is added, seen again, and at most once ended. Only who asks for it deletes one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from observer.observation import Observation, ObservedRelationship
from observer.schema import EntityType, Predicate, Temporal, canonical_triple

Key = tuple[str, str, str]
"""Subject, predicate and object as `schema.canonical_triple` gives them: what makes two facts the same."""

_NAMESPACE = uuid.UUID("0f7d6b0e-4a51-5a0c-9d6e-6d5f0b5c6a11")


class OperationKind(StrEnum):
    ADD = "ADD"
    INVALIDATE = "INVALIDATE"
    NOOP = "NOOP"


class Reason(StrEnum):
    """Why an operation is what it is; the middle six also say why a fact ended."""

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
    the time of the conversation that ended it, at the latest: None says that it is current. `first_seen`, when it was
    first stated as `temporal` has it, and `last_seen` are times of conversations too. All times have a zone. `temporal`
    is as the first of the conversations stated it, in whatever order they were read.
    """

    id: str
    subject: str
    predicate: Predicate
    object: str
    subject_type: EntityType | None = None
    object_type: EntityType | None = None
    temporal: Temporal
    when: str | None = None
    valid_at: datetime | None = None
    invalid_at: datetime | None = None
    first_seen: datetime
    last_seen: datetime
    ended_at: datetime | None = None
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


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; one without a zone, or beyond the calendar in UTC, counts as UTC."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:  # hours before the year 1, or after 9999
        return moment.replace(tzinfo=UTC)


def fact_of(relationship: ObservedRelationship, types: Mapping[str, EntityType], seen_at: datetime) -> Fact:
    """The fact that a relationship states, with the id of the first fact of its key. `types` are those of names."""
    names = (relationship.subject, relationship.object)
    key = canonical_triple(names[0], str(relationship.predicate), names[1])
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


def without(observation: Observation, key: Key) -> Observation:
    """The observation less what it states of one triple, less the names that stood only there, and less what a fault
    quotes of the answer."""
    left, gone = [], []
    for relationship in observation.relationships:
        triple = canonical_triple(relationship.subject, str(relationship.predicate), relationship.object)
        (gone if triple == key else left).append(relationship)
    names = {name for relationship in gone for name in (relationship.subject, relationship.object)}
    names -= {name for relationship in left for name in (relationship.subject, relationship.object)}
    entities = [entity for entity in observation.entities if entity.name not in names]
    fault = observation.fault and observation.fault.partition(": ")[0]
    return observation.model_copy(update={"relationships": left, "entities": entities, "fault": fault})


def fact_id(key: Key, number: int) -> str:
    """The id of the `number`-th fact of a key, from 0; the same in every memory."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((*key, str(number)))))
