"""From a model's answers to an observation: names are grounded, secrets left out, times worked out.

Nothing here asks a model; `client` does.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from observer.observation import (
    Asked,
    Completion,
    Grade,
    GradeResult,
    Observation,
    ObservedEntity,
    ObservedRelationship,
)
from observer.schema import USER, Entity, Extraction, Relationship
from observer.turns.before_model import Prepared
from observer.turns.grounding import find_name, stated_by
from observer.turns.pronouns import is_nobodys_name, is_user
from observer.turns.redaction import MARK
from observer.turns.time_expressions import validity

T = TypeVar("T", bound=BaseModel)
UNREAD = "the answer is none of the schema's"


def observation(
    prepared: Prepared,
    model: str,
    task: Asked = "observe",
    *,
    grade: Grade | None = None,
    completion: Completion | None = None,
    fault: str | None = None,
) -> Observation:
    """What the answers come to. Without a completion nothing is extracted."""
    found, unread = read_extraction(completion.text, completion.truncated) if completion else (Extraction(), None)
    return Observation(
        task=task,
        grade=_grade_result(grade) if grade else None,
        entities=_entities(found, prepared),
        relationships=_relationships(found, prepared, _confidence(completion)),
        redactions=prepared.redactions,
        truncated=completion.truncated if completion else False,
        repeated=completion.repeated if completion else False,
        context_cut=prepared.context_cut,
        fault=fault or (_without_secrets(unread, prepared) if unread else None),
        model=model,
        at=prepared.exchange.at,
        id=prepared.exchange.id,
        text_hash=prepared.text_hash,
    )


def read_extraction(text: str, truncated: bool = False) -> tuple[Extraction, str | None]:
    """The answer as the schema's types and what is wrong with it: of a broken answer, the items that are whole."""
    try:
        return Extraction.model_validate_json(text), None
    except ValidationError:
        fault = "the answer reached its bound" if truncated else f"{UNREAD}: {text[:60]!r}"
    entities, relationships = _whole(Entity, text, "entities"), _whole(Relationship, text, "relationships")
    return Extraction(entities=entities, relationships=relationships), fault


def _without_secrets(fault: str, prepared: Prepared) -> str:
    """A fault quotes the answer, unless that gives something away."""
    return f"{UNREAD}: {MARK}" if prepared.is_secret(fault) else fault


def _whole(kind: type[T], text: str, name: str) -> list[T]:
    """The items of the first list of that name, up to where it is cut or no JSON."""
    found: list[T] = []
    place = re.search(rf'"{name}"\s*:\s*\[\s*', text)
    while place:
        try:
            item, end = json.JSONDecoder().raw_decode(text, place.end())
        except (ValueError, RecursionError):
            break
        with contextlib.suppress(ValidationError):  # the answer's fault is told; what is whole is kept
            found.append(kind.model_validate(item))
        place = re.compile(r"\s*,\s*").match(text, end)
    return found


def _entities(found: Extraction, prepared: Prepared) -> list[ObservedEntity]:
    """Each name once, with the places where it stands; what gives away a secret is left out.

    A pronoun is nobody's name, wherever it stands; `I` and its like are `User`.
    """
    entities: dict[str, ObservedEntity] = {}
    for entity in found.entities:
        name = _name(entity.name, prepared)
        if name in entities or prepared.is_secret(name):
            continue
        spans = find_name(name, prepared.messages)
        entities[name] = ObservedEntity(
            name=name,
            type=entity.type,
            attributes={
                key: text for key, text in entity.attributes.items() if not prepared.is_secret(key + "\n" + text)
            },
            spans=spans,
            is_grounded=name == USER or (bool(spans) and not is_nobodys_name(name, prepared.text)),
        )
    return list(entities.values())


def _relationships(found: Extraction, prepared: Prepared, confidence: float | None) -> list[ObservedRelationship]:
    seen: dict[ObservedRelationship, None] = {}
    for relation in found.relationships:
        subject, obj = ends = (_name(relation.subject, prepared), _name(relation.object, prepared))
        if any(prepared.is_secret(end) for end in ends):
            continue
        when = _time_in_the_text(relation.when, prepared)
        holds = validity(when, relation.temporal, prepared.exchange.at)
        evidence = [*(end for end in ends if end != USER), *([when] if when else [])]
        seen[
            ObservedRelationship(
                subject=subject,
                predicate=relation.predicate,
                object=obj,
                temporal=relation.temporal,
                when=when,
                valid_at=holds.valid_at,
                invalid_at=holds.invalid_at,
                stated_by=stated_by(evidence, prepared.messages),
                confidence=confidence,
            )
        ] = None
    return list(seen)


def _name(name: str, prepared: Prepared) -> str:
    return USER if is_user(name, prepared.text) else name


def _time_in_the_text(when: str | None, prepared: Prepared) -> str | None:
    """`when` is verbatim from the text: one that stands nowhere in it was made up, and would date a fact wrongly."""
    if not when or prepared.is_secret(when) or not find_name(when, prepared.messages):
        return None
    return when


def _grade_result(grade: Grade) -> GradeResult:
    if not grade.probabilities:
        return GradeResult(label=grade.label)
    probabilities = {label: min(1.0, share) for label, share in grade.probabilities.items()}  # 1 + rounding
    return GradeResult(label=grade.label, probabilities=probabilities, confidence=probabilities[grade.label])


def _confidence(completion: Completion | None) -> float | None:
    """The geometric mean of the probabilities of the answer's tokens: one figure for all relationships in it."""
    if completion is None or not completion.logprobs:
        return None
    return min(1.0, math.exp(sum(completion.logprobs) / len(completion.logprobs)))
