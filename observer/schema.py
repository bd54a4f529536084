"""The closed inventories and the row types: labels, entity types, predicates, temporal states.

Field names are those of the raw rows; this module owns their meaning, their compact JSON
and the grammar that accepts exactly that JSON. It leaves wording to `prompts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


class Label(StrEnum):
    """How much a turn is worth remembering, lowest first."""

    DISCARD = "DISCARD"
    STORE = "STORE"
    IMPORTANT = "IMPORTANT"


def one_of(names: Iterable[str]) -> str:
    """`DISCARD, STORE or IMPORTANT`."""
    *others, last = names
    return f"{', '.join(others)} or {last}"


class EntityType(StrEnum):
    PERSON = "Person"
    ANIMAL = "Animal"
    ORGANIZATION = "Organization"
    PLACE = "Place"
    PRODUCT = "Product"
    TECHNOLOGY = "Technology"
    EVENT = "Event"
    CONCEPT = "Concept"


class Temporal(StrEnum):
    ONGOING = "ongoing"
    COMPLETED = "completed"
    FUTURE = "future"


# fmt: off
PREDICATES_BY_GROUP: dict[str, tuple[str, ...]] = {
    "identity": ("HAS_NAME", "HAS_AGE", "BORN_IN", "BORN_ON", "FROM", "SPEAKS"),
    "work_and_study": ("WORKS_AT", "HAS_ROLE", "WORKS_ON", "REPORTS_TO", "COLLEAGUE_OF",
                       "STUDIES_AT", "STUDIES", "MEMBER_OF"),
    "people": ("MARRIED_TO", "ENGAGED_TO", "DATING", "PARENT_OF", "CHILD_OF", "SIBLING_OF",
               "RELATIVE_OF", "FRIEND_OF", "ROOMMATE_OF", "NEIGHBOR_OF"),
    "life": ("LIVES_IN", "LOCATED_IN", "VISITS", "HAS_PET", "OWNS", "USES", "HAS_CONDITION",
             "ALLERGIC_TO", "TAKES", "FOLLOWS_DIET", "ATTENDS", "DOES"),
    "taste": ("LIKES", "DISLIKES", "PREFERS", "INTERESTED_IN"),
    "fallback": ("RELATED_TO",),
}
# fmt: on


class Predicate(StrEnum):
    """Every predicate of the groups; state never lives in the predicate."""

    for __name in chain.from_iterable(PREDICATES_BY_GROUP.values()):  # a private name is no member
        vars()[__name] = __name


STORE_PREDICATES = frozenset(
    {*PREDICATES_BY_GROUP["taste"], "VISITS", "ATTENDS", "DOES", "USES", "LOCATED_IN", "RELATED_TO"}
)
"""Durable but replaceable; every other predicate makes a turn IMPORTANT."""

SYMMETRIC_PREDICATES = frozenset(
    "MARRIED_TO ENGAGED_TO DATING SIBLING_OF RELATIVE_OF FRIEND_OF ROOMMATE_OF NEIGHBOR_OF COLLEAGUE_OF".split()
)
INVERSE_PREDICATES = {"CHILD_OF": "PARENT_OF"}
"""predicate -> the predicate that says the same with subject and object exchanged."""

# fmt: off
OBJECT_TYPES: dict[str, str] = {
    **dict.fromkeys(["REPORTS_TO", "COLLEAGUE_OF", *PREDICATES_BY_GROUP["people"]], "Person"),
    "HAS_NAME": "Person Animal", "HAS_PET": "Animal", "BORN_IN": "Place", "LOCATED_IN": "Place",
    "LIVES_IN": "Place Product", "VISITS": "Place Organization", "FROM": "Place Concept",
    "MEMBER_OF": "Organization", "WORKS_AT": "Organization Place", "STUDIES_AT": "Organization Place",
    "ATTENDS": "Event Organization",
    **dict.fromkeys(["HAS_AGE", "BORN_ON", "SPEAKS", "HAS_ROLE", "HAS_CONDITION", "FOLLOWS_DIET"], "Concept"),
    "STUDIES": "Concept Technology", "TAKES": "Concept Product", "ALLERGIC_TO": "Concept Product Animal",
    "DOES": "Concept Product Technology Event", "WORKS_ON": "Concept Product Technology",
    "USES": "Technology Product Organization Concept", "OWNS": "Product Place Organization Animal Technology Concept",
}
# fmt: on
"""predicate -> the types that its object may have; a predicate that is not here takes any."""


def can_relate(subject: EntityType, predicate: str, target: EntityType) -> bool:
    """Whether entities of these types may be the ends of a relationship: a person works at no person."""
    subjects = "Organization Place Event Product" if predicate == "LOCATED_IN" else "Person Animal"
    return subject in subjects.split() and target in OBJECT_TYPES.get(predicate, target).split()


ATTRIBUTE_KEYS = ("role", "age", "relation", "birthday", "team", "detail")
MAX_NAME_WORDS = 5
MAX_ITEMS, MAX_TEXT_CHARACTERS = 12, 60
"""Bounds of the grammar alone, far above what a turn holds: a model that repeats itself comes to an end."""
USER = "User"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Turn(_Row):
    """One earlier message of the conversation."""

    role: Literal["user", "assistant"]
    content: str


def _without_nulls(value: Any) -> Any:
    """Null is absent, as for every field of a row: tables have a column for each key, empty where a row has none."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return {} if value is None else value


class Entity(_Row):
    """A named thing; `name` is copied from the text, or is `User`."""

    name: str = Field(min_length=1)
    type: EntityType
    attributes: Annotated[dict[str, str], BeforeValidator(_without_nulls)] = {}


class Relationship(_Row):
    """`subject` and `object` are names of entities; `when` is verbatim from the text, and None when it is empty."""

    subject: str
    predicate: Predicate
    object: str
    temporal: Temporal
    when: Annotated[str | None, AfterValidator(lambda text: text or None)] = None


class Extraction(_Row):
    """What one turn says: the answer of the extraction task."""

    entities: list[Entity] = []
    relationships: list[Relationship] = []

    def to_compact_json(self) -> str:
        """JSON without optional spaces, keys in schema order, empty `attributes` and `when` left out."""
        entities = [
            {"name": e.name, "type": str(e.type), **({"attributes": e.attributes} if e.attributes else {})}
            for e in self.entities
        ]
        relationships = [
            {"subject": r.subject, "predicate": str(r.predicate), "object": r.object, "temporal": str(r.temporal)}
            | ({"when": r.when} if r.when else {})
            for r in self.relationships
        ]
        value = {"entities": entities, "relationships": relationships}
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def faults(self) -> list[str]:
        """What the types alone do not check: endpoints, duplicate names, name length, attribute keys."""
        found: list[str] = []
        names = [entity.name for entity in self.entities]
        found += [f"entity {name!r} appears twice" for name in sorted({n for n in names if names.count(n) > 1})]
        for entity in self.entities:
            if len(entity.name.split()) > MAX_NAME_WORDS:
                found.append(f"entity name {entity.name!r} has more than {MAX_NAME_WORDS} words")
            for key in entity.attributes.keys() - set(ATTRIBUTE_KEYS):
                found.append(f"unknown attribute {key!r}; allowed: {', '.join(ATTRIBUTE_KEYS)}")
        for relation in self.relationships:
            for end in (relation.subject, relation.object):
                if end not in names:
                    found.append(f"relationship endpoint {end!r} is not among the entities; add it there")
        return found


Unseen = Literal["none", "family", "name", "family+name"]
"""What of a validation row train never shows: its wording, at least one of its names, or both."""


Origin = Literal["generated", "natural"]
"""Put into words by `observer.data.synth`, or written as people write and labelled twice."""


class _Provenance(_Row):
    """What both kinds of raw row share. `names` are the values of its text that a split may hold out."""

    user_message: str = Field(min_length=1)
    assistant_message: str
    context: list[Turn] = []
    id: str | None = None
    source: str | None = None
    origin: Origin | None = None
    family: str | None = None
    frame: str | None = None
    seed: int | None = None
    slices: list[str] = []
    names: list[str] = []
    unseen: Unseen | None = None

    @property
    def part(self) -> Literal["train", "val"]:
        """What the end of `source` says (`natural/val`); a row that names no part is train's."""
        return "val" if (self.source or "").endswith("/val") else "train"


class GradingRow(_Provenance):
    """A raw row of the utility task."""

    label: Label
    reasoning: str = ""
    confidence: float = Field(default=1.0, ge=0, le=1)


class ExtractionRow(_Provenance):
    """A raw row of the extraction task."""

    entities: list[Entity]
    relationships: list[Relationship]
    confidence: float | None = Field(default=None, ge=0, le=1)

    @property
    def extraction(self) -> Extraction:
        return Extraction(entities=self.entities, relationships=self.relationships)


RawRow = GradingRow | ExtractionRow


def parse_row(value: dict[str, Any]) -> tuple[RawRow | None, list[str]]:
    """Return the row and no faults, or None and every fault in words a person can act on."""
    kind = GradingRow if "label" in value else ExtractionRow
    try:
        row = kind.model_validate(value)
    except ValidationError as error:
        return None, [describe_fault(fault) for fault in error.errors()]
    faults = row.extraction.faults() if isinstance(row, ExtractionRow) else []
    return (None, faults) if faults else (row, [])


def describe_fault(fault: Any) -> str:
    """One pydantic error as `field: what was found; what is allowed`."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "enum":
        return f"{where}: unknown value {fault['input']!r}; allowed: {fault['ctx']['expected'].replace(chr(39), '')}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    if fault["type"] == "model_type":
        return f"{where}: keys and their values are expected, found {str(fault['input'])[:60]!r}"
    what = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{where}: {what}, found {str(fault['input'])[:60]!r}"


def highest_label(predicates: list[str]) -> Label:
    """The label of a turn that states these predicates: the highest of theirs wins."""
    if not predicates:
        return Label.DISCARD
    return Label.STORE if all(p in STORE_PREDICATES for p in predicates) else Label.IMPORTANT


def canonical_triple(subject: str, predicate: str, obj: str) -> tuple[str, str, str]:
    """Case-folded names; inverse predicates turned round; symmetric ones with `User`, then the alphabet, first."""
    if predicate in INVERSE_PREDICATES:
        subject, predicate, obj = obj, INVERSE_PREDICATES[predicate], subject
    subject, obj = subject.casefold(), obj.casefold()
    user = USER.casefold()
    if predicate in SYMMETRIC_PREDICATES and subject != user and (obj == user or obj < subject):
        subject, obj = obj, subject
    return subject, predicate, obj


def extraction_json_schema() -> dict[str, Any]:
    """JSON schema of the extraction answer, for servers that take one (`format`); bounded as the grammar is."""

    def obj(required: list[str], **properties: Any) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def up_to(items: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": items, "maxItems": MAX_ITEMS}

    text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS}
    attributes = obj([], **dict.fromkeys(ATTRIBUTE_KEYS, text))
    entity = obj(["name", "type"], name=text, type={"enum": [str(t) for t in EntityType]}, attributes=attributes)
    relation = obj(
        ["subject", "predicate", "object", "temporal"],
        subject=text,
        predicate={"enum": [str(p) for p in Predicate]},
        object=text,
        temporal={"enum": [str(t) for t in Temporal]},
        when=text,
    )
    return obj(["entities", "relationships"], entities=up_to(entity), relationships=up_to(relation))


def extraction_grammar() -> str:
    """GBNF that accepts exactly what `Extraction.to_compact_json` writes (llama.cpp grammars/README.md)."""

    def choice(values: Iterable[str]) -> str:
        return " | ".join(f'"{value}"' for value in values)

    rules = {
        "root": r"""'{"entities":[' entities? '],"relationships":[' relations? ']}'""",
        "entities": f"entity (',' entity){{0,{MAX_ITEMS - 1}}}",
        "relations": f"relation (',' relation){{0,{MAX_ITEMS - 1}}}",
        "entity": r"""'{"name":' string ',"type":"' type '"' attributes? '}'""",
        "attributes": r"""',"attributes":{' pair (',' pair)* '}'""",
        "pair": r"""'"' key '":' string""",
        "relation": r"""'{"subject":' string ',"predicate":"' predicate '","object":' string """
        r"""',"temporal":"' temporal '"' when? '}'""",
        "when": r"""',"when":' string""",
    }
    quoted = {name: re.sub(r"'([^']*)'", lambda m: json.dumps(m.group(1)), rule) for name, rule in rules.items()}
    quoted |= {
        "type": choice(EntityType),
        "key": choice(ATTRIBUTE_KEYS),
        "predicate": choice(Predicate),
        "temporal": choice(Temporal),
        "string": rf'"\"" char{{1,{MAX_TEXT_CHARACTERS}}} "\""',
        "char": r'[^"\\\x00-\x1F] | "\\" (["\\bfnrt/] | "u00" [01] [0-9a-fA-F])',
    }
    return "\n".join(f"{name} ::= {rule}" for name, rule in quoted.items())
