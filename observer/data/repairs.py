"""Turns a raw row of older data into one of ours: every repair is counted, what cannot be repaired is a fault."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from observer.data.aliases import TEMPORAL_ALIASES, TYPE_ALIASES, normalize, resolve_predicate
from observer.schema import ATTRIBUTE_KEYS, USER, EntityType, Predicate, RawRow, parse_row
from observer.turns.pronouns import is_user

FALLBACK = str(Predicate("RELATED_TO"))
PREDICATES = frozenset(map(str, Predicate))


@dataclass(frozen=True)
class Repaired:
    """The row, or its faults; `repairs` counts what was changed, by kind."""

    row: RawRow | None
    repairs: Counter[str]
    faults: list[str]


def repair_row(value: dict[str, Any], *, unknown_to_related: bool = False) -> Repaired:
    """Repair and parse one raw row. `unknown_to_related` makes RELATED_TO of a predicate without an alias."""
    repair = _Repair(value, unknown_to_related)
    row, faults = parse_row(repair.row)
    faults = repair.faults + [fault for fault in faults if fault not in repair.faults]
    return Repaired(None if faults else row, +repair.repairs, faults)


class _Repair:
    """One row under repair. Values of a wrong type are left for `parse_row` to name."""

    def __init__(self, value: dict[str, Any], unknown_to_related: bool) -> None:
        self.repairs: Counter[str] = Counter()
        self.faults: list[str] = []
        self.unknown_to_related = unknown_to_related
        self.row = dict(value)
        self._repair_turns()
        if isinstance(self.row.get("entities"), list) and isinstance(self.row.get("relationships"), list):
            self.entities = self._unrepeated([self._entity(entity) for entity in self.row["entities"]], "entities")
            relations = [self._relation(index, value) for index, value in enumerate(self.row["relationships"])]
            self.row["relationships"] = self._unrepeated(relations, "relationships")
            self._repair_endpoints()
            self.row["entities"] = self.entities

    def _repair_turns(self) -> None:
        if self.row.get("assistant_message") is None:
            self.row["assistant_message"] = ""
            self.repairs["missing replies made empty"] += 1
        message = self.row.get("user_message")
        if isinstance(message, str) and message and not message.strip():
            self.faults.append("user_message: nothing but blanks; a turn of the user is expected")

    def _entity(self, entity: Any) -> Any:
        if not isinstance(entity, dict):
            return entity
        entity = entity | {"name": self._name(entity.get("name"))}
        if isinstance(entity.get("type"), str) and entity["type"] not in list(EntityType):
            entity["type"] = TYPE_ALIASES.get(normalize(entity["type"]).lower(), str(EntityType.CONCEPT))
            self.repairs["entity types mapped"] += 1
        if entity.get("attributes", {}) is None:
            entity["attributes"] = {}
        if isinstance(entity.get("attributes"), dict):
            entity["attributes"] = self._attributes(entity["attributes"])
        return entity

    def _name(self, name: Any) -> Any:
        if isinstance(name, str) and name != USER and is_user(name, row_text(self.row)):
            self.repairs[f"names made {USER}"] += 1
            return USER
        return name

    def _attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Known keys with text values; the other keys end in `detail`, in words."""
        known: dict[str, Any] = {}
        details: list[str] = []
        for key, value in attributes.items():
            text = as_text(value)
            if text != value:
                self.repairs["attribute values made text"] += 1
            if key in ATTRIBUTE_KEYS or not isinstance(text, str):
                known |= {key: text} if text else {}
            else:
                details += [attribute_text(key, value)] if text else []
                self.repairs["attribute keys moved into detail"] += 1
        if details:
            known["detail"] = "; ".join([*filter(None, [known.get("detail")]), *details])
        return known

    def _relation(self, index: int, relation: Any) -> Any:
        if not isinstance(relation, dict):
            return relation
        relation = relation | {end: self._name(relation[end]) for end in ("subject", "object") if end in relation}
        temporal, predicate = relation.get("temporal"), relation.get("predicate")
        if isinstance(temporal, str):
            relation["temporal"] = TEMPORAL_ALIASES.get(temporal.strip().casefold(), temporal)
            self.repairs["temporal states mapped"] += relation["temporal"] != temporal
        if isinstance(predicate, str) and predicate not in PREDICATES:
            relation["predicate"], relation["temporal"] = self._predicate(index, predicate, relation.get("temporal"))
        return relation

    def _predicate(self, index: int, name: str, temporal: Any) -> tuple[str, Any]:
        """Predicate and state for an older or unknown name."""
        state = temporal if isinstance(temporal, str) else ""
        alias = (normalize(name), state) if normalize(name) in PREDICATES else resolve_predicate(name, state)
        if alias:
            self.repairs["predicates mapped"] += 1
            return alias[0], alias[1] or temporal
        if self.unknown_to_related:
            self.repairs[f"unknown predicates made {FALLBACK}"] += 1
        else:
            self.faults.append(
                f"relationships.{index}.predicate: unknown predicate {name!r}; rename it, "
                "or choose quarantine or related for unknown predicates"
            )
        return FALLBACK, temporal

    def _repair_endpoints(self) -> None:
        """Endpoints that are no entities: `User`, another spelling of one, or words of the text."""
        for relation in filter(lambda r: isinstance(r, dict), self.row["relationships"]):
            for end in ("subject", "object"):
                if isinstance(relation.get(end), str):
                    relation[end] = self._endpoint(relation[end])

    def _endpoint(self, name: str) -> str:
        names = [entity.get("name") for entity in self.entities if isinstance(entity, dict)]
        spelled = {str(known).casefold(): str(known) for known in names}.get(name.casefold())
        if name in names:
            return name
        if name == USER:
            self.entities.append({"name": USER, "type": str(EntityType.PERSON)})
            self.repairs[f"{USER} added to the entities"] += 1
        elif spelled:
            self.repairs["endpoints spelled as their entity"] += 1
            return spelled
        elif is_in_text(name, row_text(self.row)):
            self.entities.append({"name": name, "type": str(EntityType.CONCEPT)})
            self.repairs["endpoints added to the entities"] += 1
        else:
            self.faults.append(f"relationship endpoint {name!r} is neither among the entities nor in the text")
            self.entities.append({"name": name, "type": str(EntityType.CONCEPT)})  # one fault is enough
        return name

    def _unrepeated(self, items: list[Any], what: str) -> list[Any]:
        """Each item once; an entity that comes again with the same type brings its attributes."""
        kept: list[Any] = []
        seen: dict[Any, Any] = {}
        for item in items:
            identity = _identity(item)
            same = seen.get(identity) if identity else None
            if same is None:
                kept.append(item)
                if identity:
                    seen[identity] = item
                continue
            self.repairs[f"repeated {what} left out"] += 1
            if "attributes" in item:
                same["attributes"] = item["attributes"] | same.get("attributes", {})
        return kept


def _identity(item: Any) -> tuple[Any, ...] | None:
    """What makes two items one; None of an item that is broken."""
    if not isinstance(item, dict) or not isinstance(item.get("attributes", {}), dict):
        return None
    keys = ("name", "type") if "name" in item else ("subject", "predicate", "object", "temporal", "when")
    values = tuple(item.get(key) for key in keys)
    return values if all(isinstance(value, str | None) for value in values) else None


def as_text(value: Any) -> Any:
    """Lists, booleans and numbers as text, nothing as empty text; other types as they are."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return ", ".join(as_text(part) for part in value)
    return value


def attribute_text(key: str, value: Any) -> str:
    """An attribute of a key we do not have: `breed beagle`, `vegetarian`, `no car`."""
    words = re.sub(r"[\s_]+", " ", key).strip()
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {as_text(value)}".strip()


def row_text(row: dict[str, Any]) -> str:
    """All turns of a raw row, whatever its types."""
    context = row.get("context") if isinstance(row.get("context"), list) else []
    turns = [turn.get("content") for turn in context or () if isinstance(turn, dict)]
    return "\n".join(str(turn) for turn in [*turns, row.get("user_message"), row.get("assistant_message")])


def is_in_text(name: str, text: str) -> bool:
    """Whether `name` stands in the text as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
