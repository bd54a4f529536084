"""What held on a day, told twice: as the conversations up to that day had it, and as all of them have it.

The two part where a later conversation tells of the past: what was over already, or had begun unsaid.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from observer.errors import ObserverError
from observer.memory.diff import remember
from observer.memory.facts import Fact, Reason
from observer.memory.rules import TIMELESS
from observer.memory.store import Store
from observer.schema import Temporal

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
    name = about and about.casefold()
    told = [fact for fact in remember(store.told(before=end)) if name is None or name in (fact.key[0], fact.key[2])]
    known = store.known(about, is_current=False)
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
