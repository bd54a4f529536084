"""What older data calls things, and what the schema calls them: predicates, entity types, temporal states.

Predicates of older data carry state (`RESIGNED_FROM`), so an alias is a predicate and, where the old name settles it,
a state. A name is left out where its meaning would be lost: when the object is a time (`STARTS_AT`: our `when`), or a
comparison that needs a third thing (`PREFERS_OVER`).
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

State = Literal["ongoing", "completed", "future"]


class Alias(NamedTuple):
    """A predicate of the schema; `temporal` None keeps the state that the row gives."""

    predicate: str
    temporal: State | None


# fmt: off
_OLDER_NAMES: dict[Alias, str] = {
    # work, study, groups
    Alias("WORKS_AT", "completed"): "RESIGNED_FROM",
    Alias("HAS_ROLE", "ongoing"): "PROMOTED_TO",
    Alias("HAS_ROLE", None): "ROLE ROLE_AS WORKS_AS",
    Alias("MEMBER_OF", None): "PART_OF",
    # homes and journeys; who moves together shares a home
    Alias("LIVES_IN", "ongoing"): "MOVED_TO",
    Alias("LIVES_IN", "future"): "MOVING_TO",
    Alias("LIVES_IN", "completed"): "LIVED_IN MOVED_FROM",
    Alias("LIVES_IN", None): "LIVES_AT",
    Alias("ROOMMATE_OF", "ongoing"): "MOVED_WITH MOVED_TOGETHER_WITH MOVED_TOGETHER",
    Alias("VISITS", None): "VISITING",
    Alias("VISITS", "completed"): "VISITED RETURNED_HOME",
    # people
    Alias("DATING", "ongoing"): "STARTED_DATING",
    Alias("DATING", None): "IN_RELATIONSHIP_WITH IS_IN_RELATIONSHIP_WITH HAS_GIRLFRIEND HAS_BOYFRIEND",
    Alias("DATING", "completed"): "BROKE_UP_WITH",
    Alias("SIBLING_OF", None): "HAS_SIBLING SIBLING",
    Alias("CHILD_OF", None): "HAS_PARENT HAS_MOTHER HAS_FATHER",
    Alias("RELATIVE_OF", None): "HAS_RELATIVE FAMILY_MEMBER FAMILY_RELATIONSHIP",
    Alias("FRIEND_OF", None): "FRIEND",
    # belongings and appointments
    Alias("OWNS", "ongoing"): "BOUGHT PURCHASED UPGRADED_TO",
    Alias("OWNS", "completed"): "OWNED UPGRADED_FROM",
    Alias("ATTENDS", "future"): "HAS_SCHEDULED HAS_APPOINTMENT",
    # tastes
    Alias("LIKES", None): "ENJOYS ENJOYS_PLAYING ENJOYS_WATCHING FAVORITE FAVORITE_LANGUAGE FAVORITE_SPORT "
                          "FAVORITE_HOBBY",
    Alias("DISLIKES", None): "DISLIKE DISFAVORS DOES_NOT_PREFER",
    Alias("PREFERS", None): "BELIEVES_IS_SUPERIOR BELIEVES_SUPERIORITY_OF",
    Alias("INTERESTED_IN", None): "LEARNING_ABOUT INQUIRES_ABOUT",
    Alias("DOES", None): "HAS_HOBBY",
    # ties that the schema has no closer word for: closeness and contact, opinions, trade, kinds and parts, plain HAS
    Alias("RELATED_TO", None): "HAS_RELATION HAS_RELATIONSHIP HAS_RELATIONSHIP_WITH IS_CLOSE_TO CLOSE_TO "
                               "IS_REALLY_CLOSE_TO TALKS_TO TALKS_WITH COMMUNICATES_WITH BELIEVES HAS SOLD_BY "
                               "PURCHASED_FROM BOUGHT_FROM MANUFACTURED_BY COMPARED_TO CONTAINS INCLUDES "
                               "EQUIPPED_WITH IS_A IS_A_TYPE_OF IS_A_MODEL_OF USES_FOR USED_FOR PURPOSE",
}
# fmt: on

ALIASES: dict[str, Alias] = {name: alias for alias, names in _OLDER_NAMES.items() for name in names.split()}
"""Predicates of older data, normalized -> predicate and state."""

# fmt: off
_OLDER_TYPES = {
    "Person": "person people human user friend family",
    "Animal": "animal pet dog cat",
    "Organization": "organization organisation company business employer school university team club group",
    "Place": "place location city country region state town address",
    "Product": "product device item vehicle car object",
    "Technology": "technology software tool language programming_language framework platform app",
    "Event": "event appointment meeting trip holiday",
    "Concept": "concept",
}
# fmt: on
TYPE_ALIASES = {name: entity_type for entity_type, names in _OLDER_TYPES.items() for name in names.split()}
"""Entity types of older data, normalized -> ours; what is not here (Food, Hobby, Activity, …) is a Concept."""

TEMPORAL_ALIASES: dict[str, State] = {
    "ongoing": "ongoing", "current": "ongoing", "present": "ongoing",
    "completed": "completed", "past": "completed",
    "future": "future", "planned": "future",
}  # fmt: skip


def normalize(name: str) -> str:
    """`Learning about`, `learning-about` -> `LEARNING_ABOUT`."""
    return re.sub(r"[\s_-]+", "_", name.strip()).upper()


def resolve_predicate(name: str, temporal: str) -> tuple[str, str] | None:
    """Predicate and state that an older name stands for; None for a name that has no alias.

    What lies in the future stays there (`will have bought`), and what is to end still holds (`will resign from`).
    """
    alias = ALIASES.get(normalize(name))
    if alias is None:
        return None
    if temporal == "future" and alias.temporal:
        return alias.predicate, "ongoing" if alias.temporal == "completed" else "future"
    return alias.predicate, alias.temporal or temporal
