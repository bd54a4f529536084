"""The page on what a model answers, and on what rows and observations hold."""

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


def schema_page() -> str:
    return (
        "\n\n".join([_labels(), _types(), _predicates(), _temporal(), _answers(), _prompts(), _rows(), _observations()])
        + "\n"
    )


def _labels() -> str:
    intro = (
        "# Schema\n\nEvery set here is closed. The code: `observer/schema.py`.\n\n## Labels\n\n"
        "The highest label in the exchange wins. An exchange that states nothing durable is DISCARD."
    )
    rows = []
    for label in Label:
        predicates = [p for group in PREDICATES_BY_GROUP.values() for p in group if highest_label([p]) is label]
        rows.append([str(label), ", ".join(predicates) or "none"])
    return f"{intro}\n\n{table(['label', 'predicates that make it'], rows)}"


def _types() -> str:
    older = {
        str(kind): [name for name, new in TYPE_ALIASES.items() if new == kind and name != kind.lower()]
        for kind in EntityType
    }
    rows = [[kind, ", ".join(names)] for kind, names in older.items()]
    return (
        f"## Entities\n\nA name is copied from the text and has at most {MAX_NAME_WORDS} words; who speaks is `User`. "
        f"Attributes: {', '.join(f'`{key}`' for key in ATTRIBUTE_KEYS)}.\n\n"
        + table(["type", "also read from older rows"], rows)
    )


def _predicates() -> str:
    rows = []
    for group, predicates in PREDICATES_BY_GROUP.items():
        for predicate in predicates:
            notes = ["symmetric"] if predicate in SYMMETRIC_PREDICATES else []
            notes += [f"inverse of {INVERSE_PREDICATES[predicate]}"] if predicate in INVERSE_PREDICATES else []
            notes += ["one at a time"] if predicate in ONE_AT_A_TIME else []
            label = Label.STORE if predicate in STORE_PREDICATES else Label.IMPORTANT
            rows.append([predicate, group.replace("_", " "), str(label), ", ".join(notes), _aliases(predicate)])
    return (
        f"## Predicates\n\n{len(rows)} of them. State is never in a predicate: a past job is WORKS_AT with "
        "`completed`. Of a symmetric one, subject and object may change places; an inverse one is kept as the other. "
        "`one at a time`: in a [memory](../memory.md) a later fact ends the earlier one. Older names are read in any "
        "case, some with a state.\n\n" + table(["predicate", "group", "label", "", "older names"], rows)
    )


def _aliases(predicate: str) -> str:
    names = [(name, alias.temporal) for name, alias in ALIASES.items() if alias.predicate == predicate]
    return ", ".join(f"{name} ({state})" if state else name for name, state in names)


def _temporal() -> str:
    rows = []
    for state in Temporal:
        older = [name for name, new in TEMPORAL_ALIASES.items() if new == state and name != state]
        rows.append([f"`{state}`", _TEMPORAL_MEANING[state], ", ".join(older)])
    return "## Temporal\n\nA change of state is two relationships.\n\n" + table(["state", "", "also read"], rows)


def _answers() -> str:
    return (
        "## Answers\n\nA grade is the label and nothing else. An extraction is JSON without optional spaces, keys in "
        "this order, empty `attributes` and absent `when` left out.\n\n"
        f"{_model(Entity)}\n\n{_model(Relationship)}\n\n"
        "JSON schema, for servers with structured output (`extraction_json_schema()`):\n\n"
        f"```json\n{json.dumps(extraction_json_schema(), indent=2)}\n```\n\n"
        "Grammar in GBNF, which is stricter: exactly the compact form, "
        f"at most {MAX_ITEMS} entities and {MAX_ITEMS} relationships, {MAX_TEXT_CHARACTERS} characters a text "
        f"(`extraction_grammar()`):\n\n```text\n{extraction_grammar()}\n```"
    )


def _prompts() -> str:
    exchange = render_exchange(
        "I left Siemens.\nI'm at Bosch now.", "Congratulations!", [Turn(role="user", content="Hi")]
    )
    cues = ", ".join(f"`{cue}` for `{task}`" for task, cue in CUES.items())
    return (
        f"## Prompts\n\nThe system message, of both tasks:\n\n```text\n{SYSTEM_PROMPT}\n```\n\n"
        f"The user message is the exchange, and a last line that names the task: {cues}.\n\n"
        "The whole prompt of a grading, after which the "
        "answer begins (`render_prompt`). Each turn begins a line; the lines after a turn's first are indented:\n\n"
        f"```text\n{render_prompt(Task.GRADE, exchange)}```"
    )


def _rows() -> str:
    shared = [name for name in GradingRow.model_fields if name in ExtractionRow.model_fields and name != "confidence"]
    return (
        "## Raw rows\n\nOne JSON object a line; a row with `label` is a grading row. What the fields mean: "
        "[data card](../../data/README.md).\n\n### Both kinds\n\n"
        + _fields({name: GradingRow.model_fields[name] for name in shared})
        + "".join(
            f"\n\n### {kind.__name__}\n\n{_fields({n: f for n, f in kind.model_fields.items() if n not in shared})}"
            for kind in (GradingRow, ExtractionRow)
        )
    )


def _observations() -> str:
    kinds = (Exchange, Observation, GradeResult, ObservedEntity, ObservedRelationship, Redaction, Span)
    return (
        "## Observations\n\nWhat `Observer` takes and returns, and what a line of `observer observe` holds.\n\n"
        + "\n\n".join(_model(kind) for kind in kinds)
    )


def _model(kind: type[BaseModel]) -> str:
    told = " ".join((kind.__doc__ or "").split())
    return f"### {kind.__name__}\n\n{told}\n\n{_fields(kind.model_fields)}"


def _fields(fields: dict[str, FieldInfo]) -> str:
    rows: list[Sequence[str]] = []
    for name, field in fields.items():
        default = "required" if field.is_required() else f"`{yaml_value(field.get_default(call_default_factory=True))}`"
        rows.append([f"`{name}`", type_name(field.annotation), default])
    return table(["field", "type", "default"], rows)
