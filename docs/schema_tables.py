"""What cog writes into the page on what a model answers, and on what rows and observations hold."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.markdown import table, type_name, yaml_value
from observer.data.aliases import ALIASES, TEMPORAL_ALIASES, TYPE_ALIASES
from observer.memory.rules import ONE_AT_A_TIME
from observer.observation import (
    Exchange,
    GradeResult,
    Observation,
    ObservedEntity,
    ObservedRelationship,
    Redaction,
    Span,
)
from observer.prompts import CUES, SYSTEM_PROMPT, Task, render_exchange, render_prompt
from observer.schema import (
    ATTRIBUTE_KEYS,
    INVERSE_PREDICATES,
    MAX_ITEMS,
    MAX_NAME_WORDS,
    MAX_TEXT_CHARACTERS,
    OBJECT_TYPES,
    PREDICATES_BY_GROUP,
    STORE_PREDICATES,
    SYMMETRIC_PREDICATES,
    Entity,
    EntityType,
    ExtractionRow,
    GradingRow,
    Label,
    Relationship,
    Temporal,
    Turn,
    extraction_grammar,
    extraction_json_schema,
    highest_label,
)

_TEMPORAL_MEANING = {
    Temporal.ONGOING: "holds when it is said",
    Temporal.COMPLETED: "held once, or was done",
    Temporal.FUTURE: "is planned",
}
ANSWERS = (Entity, Relationship)
OBSERVATIONS = (Exchange, Observation, GradeResult, ObservedEntity, ObservedRelationship, Redaction, Span)


def labels() -> str:
    predicates = [predicate for group in PREDICATES_BY_GROUP.values() for predicate in group]
    rows = [[str(label), ", ".join(p for p in predicates if highest_label([p]) is label) or "none"] for label in Label]
    return table(["label", "predicates that make it"], rows)


def entities() -> str:
    rows = [[kind, ", ".join(name for name, new in TYPE_ALIASES.items() if new == kind and name != kind.lower())]
            for kind in EntityType]  # fmt: skip
    return (
        f"A name is copied from the text and has at most {MAX_NAME_WORDS} words; who speaks is `User`. Attributes: "
        f"{', '.join(f'`{key}`' for key in ATTRIBUTE_KEYS)}.\n\n{table(['type', 'also read from older rows'], rows)}"
    )


def predicates() -> str:
    rows = []
    for group, found in PREDICATES_BY_GROUP.items():
        for predicate in found:
            notes = ["symmetric"] if predicate in SYMMETRIC_PREDICATES else []
            notes += [f"inverse of {INVERSE_PREDICATES[predicate]}"] if predicate in INVERSE_PREDICATES else []
            notes += ["one at a time"] if predicate in ONE_AT_A_TIME else []
            label = Label.STORE if predicate in STORE_PREDICATES else Label.IMPORTANT
            objects = OBJECT_TYPES.get(predicate, "any").replace(" ", ", ")
            row = [predicate, group.replace("_", " "), str(label), objects, ", ".join(notes), _aliases(predicate)]
            rows.append(row)
    return f"{len(rows)} of them.\n\n" + table(["predicate", "group", "label", "object", "", "older names"], rows)


def _aliases(predicate: str) -> str:
    names = [(name, alias.temporal) for name, alias in ALIASES.items() if alias.predicate == predicate]
    return ", ".join(f"{name} ({state})" if state else name for name, state in names)


def temporal() -> str:
    rows = []
    for state in Temporal:
        older = [name for name, new in TEMPORAL_ALIASES.items() if new == state and name != state]
        rows.append([f"`{state}`", _TEMPORAL_MEANING[state], ", ".join(older)])
    return table(["state", "", "also read"], rows)


def json_schema() -> str:
    return f"```json\n{json.dumps(extraction_json_schema(), indent=2)}\n```"


def grammar() -> str:
    return (
        f"at most {MAX_ITEMS} entities and {MAX_ITEMS} relationships, {MAX_TEXT_CHARACTERS} characters a text "
        f"(`extraction_grammar()`):\n\n```text\n{extraction_grammar()}\n```"
    )


def system_message() -> str:
    cues = ", ".join(f"`{cue}` for `{task}`" for task, cue in CUES.items())
    last = f"The user message is the exchange, and a last line that names the task: {cues}."
    return f"```text\n{SYSTEM_PROMPT}\n```\n\n{last}"


def whole_prompt() -> str:
    turns = [Turn(role="user", content="Hi")]
    exchange = render_exchange("I left Siemens.\nI'm at Bosch now.", "Congratulations!", turns)
    return f"```text\n{render_prompt(Task.GRADE, exchange)}```"


def raw_rows() -> str:
    shared = [name for name in GradingRow.model_fields if name in ExtractionRow.model_fields and name != "confidence"]
    own = {
        kind.__name__: {name: field for name, field in kind.model_fields.items() if name not in shared}
        for kind in (GradingRow, ExtractionRow)
    }
    kinds = {"Both kinds": {name: GradingRow.model_fields[name] for name in shared}, **own}
    return "\n\n".join(f"### {name}\n\n{_fields(fields)}" for name, fields in kinds.items())


def models(*kinds: type[BaseModel]) -> str:
    """Of each its docstring and its fields."""
    return "\n\n".join(
        f"### {kind.__name__}\n\n{' '.join((kind.__doc__ or '').split())}\n\n{_fields(kind.model_fields)}"
        for kind in kinds
    )


def _fields(fields: dict[str, FieldInfo]) -> str:
    rows: list[Sequence[str]] = []
    for name, field in fields.items():
        default = "required" if field.is_required() else f"`{yaml_value(field.get_default(call_default_factory=True))}`"
        rows.append([f"`{name}`", type_name(field.annotation), default])
    return table(["field", "type", "default"], rows)
