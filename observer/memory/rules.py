"""Which facts cannot hold together. A wrong end costs more than a stale fact, so what is in doubt may coexist."""

from __future__ import annotations

from observer.memory.facts import Fact, Key, Reason
from observer.schema import SYMMETRIC_PREDICATES

ONE_AT_A_TIME: dict[str, str] = {
    "HAS_NAME": "a new name replaces the old one",
    "HAS_AGE": "an age holds for a year",
    "BORN_IN": "there is one birth: another place corrects it",
    "BORN_ON": "there is one birth: another day corrects it",
    "LIVES_IN": "one home at a time; the move is often all that is told",
    "REPORTS_TO": "one manager at a time",
    "MARRIED_TO": "one spouse at a time, for both of the two",
    "ENGAGED_TO": "one fiancé at a time, for both of the two",
    "DATING": "one partner at a time, for both of the two",
}
"""predicate -> why a later fact of the same subject ends the earlier one, among current facts and among plans.

All others may be many: two jobs (WORKS_AT) and roles, two subjects at two schools, a flat in a house in a town
(LOCATED_IN, FROM), several diets, pets, friends and tastes. Only "I left" ends those.
"""

OPPOSITES: dict[str, frozenset[str]] = {
    "LIKES": frozenset({"DISLIKES"}),
    "PREFERS": frozenset({"DISLIKES"}),
    "DISLIKES": frozenset({"LIKES", "PREFERS"}),
}
"""predicate -> what it ends for the same subject and object."""

EARLIER_STAGES: dict[str, frozenset[str]] = {
    "ENGAGED_TO": frozenset({"DATING"}),
    "MARRIED_TO": frozenset({"DATING", "ENGAGED_TO"}),
}
"""predicate -> what it takes the place of between the same two people."""

TIMELESS = frozenset({"BORN_IN", "BORN_ON", "FROM"})
"""Said in the past tense and true for good: `completed` does not end them."""

RECURRING = frozenset({"VISITS", "ATTENDS", "DOES"})
"""Done twice at two times they are two facts; of all others a second `completed` is the first one told again."""


def why_not_both(new: Fact, old: Fact) -> Reason | None:
    """Why `old` cannot hold beside `new`, or None when it can. Both are ongoing, or both are plans."""
    predicate, other = str(new.predicate), str(old.predicate)
    (subject, _, obj), (old_subject, _, old_obj) = new.key, old.key
    if (subject, obj) == (old_subject, old_obj):
        if other in OPPOSITES.get(predicate, ()):
            return Reason.CONTRADICTED
        return Reason.SUPERSEDED if other in EARLIER_STAGES.get(predicate, ()) else None
    if predicate != other or predicate not in ONE_AT_A_TIME:
        return None
    is_symmetric = predicate in SYMMETRIC_PREDICATES
    shares_one = bool({subject, obj} & {old_subject, old_obj}) if is_symmetric else subject == old_subject
    return Reason.SUPERSEDED if shares_one else None


def topic_of(key: Key) -> str:
    """What may end one another is of one topic: what is known of a topic follows from what was said of it alone.

    Without NUL, at which SQLite ends a text of JSON: a store asks for many topics by such a list.
    """
    subject, predicate, obj = key
    family = next((family for family in _FAMILIES if predicate in family), {predicate})
    one_at_a_time = family & ONE_AT_A_TIME.keys()
    names = [] if one_at_a_time & SYMMETRIC_PREDICATES else [subject] if one_at_a_time else [subject, obj]
    return " ".join([min(family), *names]).replace("\0", " ")


def _families() -> list[set[str]]:
    """Predicates that may end one another, directly or by way of others."""
    families: list[set[str]] = []
    for predicate, ended in [*OPPOSITES.items(), *EARLIER_STAGES.items()]:
        family = {predicate, *ended}
        for other in [other for other in families if other & family]:
            families.remove(other)
            family |= other
        families.append(family)
    return families


_FAMILIES = _families()
