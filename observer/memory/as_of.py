"""What held on a day, told twice: as the conversations up to that day had it, and as all of them have it.

The two part where a later conversation tells of the past: what was over already, or had begun unsaid.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from observer.errors import ObserverError
from observer.memory.diff import apply_operations, diff, names_and_predicates
from observer.memory.facts import Fact, Reason, fact_of
from observer.memory.rules import TIMELESS, why_not_both
from observer.memory.store import Store
from observer.observation import Observation
from observer.schema import Temporal

Said = tuple[str, Observation, datetime]
"""A source, what was applied of it, and when it was said."""
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class AsOf:
    """Facts that held as the day ended, in the order in which they became known."""

    known_then: list[Fact]
    known_now: list[Fact]


def as_of(store: Store, day: date, about: str | None = None) -> AsOf:
    """What held at the end of `day` in UTC, of one name (as subject or object) or of all.

    Conversations count from when they were said, not from when they were read. Raises ObserverError for the last day
    of the calendar, which has no end.
    """
    try:
        end = datetime.combine(day + timedelta(days=1), time(), UTC)
    except OverflowError:
        raise ObserverError(f"{day}: the last day of the calendar; name an earlier one") from None
    forgotten = {e.source: e.operation.fact for e in store.history() if e.operation.reason is Reason.FORGOTTEN}
    observations, known = store.observations(before=end), store.known(about, is_current=False)
    told = _replayed(observations, forgotten)
    if about is not None:
        told = [fact for fact in told if about.casefold() in (fact.key[0], fact.key[2])]
    gave_way = {
        (fact.key, fact.temporal): fact.ended_at
        for fact in known
        if fact.ended_by in (Reason.SUPERSEDED, Reason.CONTRADICTED) and fact.ended_at and fact.ended_at < end
    }
    told = [fact for fact in told if not _lacks_its_end(fact, gave_way.get((fact.key, fact.temporal)), observations)]
    return AsOf(*([fact for fact in facts if holds_before(fact, end)] for facts in (told, known)))


def holds_before(fact: Fact, end: datetime) -> bool:
    """Whether it held right before `end`."""
    begin, ceased = _held(fact)
    return begin < end <= ceased


def _held(fact: Fact) -> tuple[datetime, datetime]:
    """From when to when, as far as anybody told; a plan stands from when it was told until it is carried out or not.

    What has no known beginning counts from when it was first said to be so, and what was only told as over never.
    """
    if fact.predicate in TIMELESS:
        begin = _LAST if fact.ended_by is Reason.SUPERSEDED else _FIRST  # another birth corrects the first
        return begin, fact.ended_at or _LAST
    if fact.temporal is Temporal.FUTURE:
        return fact.first_seen, fact.ended_at or _LAST
    begin = fact.valid_at or (fact.first_seen if fact.temporal is Temporal.ONGOING else _LAST)
    return begin, fact.invalid_at or fact.ended_at or _LAST


def _lacks_its_end(fact: Fact, gave_way_at: datetime | None, observations: Iterable[Said]) -> bool:
    """Whether it is taken for current because what it gave way to has been deleted from the observations."""
    if not gave_way_at or not fact.is_current or gave_way_at < fact.last_seen:
        return False
    said_then = [o.relationships for _, o, seen_at in observations if seen_at == gave_way_at]
    stated = [fact_of(one, {}, gave_way_at) for relationships in said_then for one in relationships]
    return not any(why_not_both(other, fact) for other in stated)


def _replayed(observations: Iterable[Said], forgotten: Mapping[str, Fact]) -> list[Fact]:
    """What is known after these, in the order in which they were said. `forgotten` is what a source asked to forget."""
    facts: dict[tuple[str, str], dict[str, Fact]] = defaultdict(dict)

    def put(fact: Fact) -> None:
        subject, predicate, obj = fact.key
        facts[subject, predicate][fact.id] = facts[obj, predicate][fact.id] = fact

    for source, observation, seen_at in observations:
        if source in forgotten:
            end = {"ended_at": seen_at, "ended_by": Reason.FORGOTTEN}
            gone = forgotten[source]
            for fact in list(facts[gone.key[0], gone.key[1]].values()):
                if fact.is_current and (fact.key, fact.temporal) == (gone.key, gone.temporal):
                    put(fact.model_copy(update=end))
            continue
        names, predicates = names_and_predicates(observation)
        known = {id: fact for name in names for predicate in predicates for id, fact in facts[name, predicate].items()}
        for fact in apply_operations([], diff(observation, known.values(), seen_at)):
            put(fact)
    found = {id: fact for of_name in facts.values() for id, fact in of_name.items()}
    return sorted(found.values(), key=lambda fact: (fact.first_seen, fact.id))
