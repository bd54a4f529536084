"""From a time expression and the turn's time to when a relationship began to hold and when it ceased.

dateparser reads the moment and does the arithmetic; which of the two it is, and what is too vague for either, is
decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import lru_cache
from typing import Literal

import regex

from observer.schema import Temporal

Direction = Literal["past", "future"]
LANGUAGES = ("en",), tuple("de fr es pt it nl pl sv da uk ru tr ja zh ko".split())
"""Read as English, else as whichever of these it is."""


@dataclass(frozen=True)
class Validity:
    """When it began to hold and when it ceased; None is not known."""

    valid_at: datetime | None = None
    invalid_at: datetime | None = None


UNKNOWN = Validity()
LONGEST = 100
"""Characters of a time expression; what is longer is none, and would be read for minutes."""


def _compiled(pattern: str) -> regex.Pattern[str]:
    """Blanks in the pattern mean nothing, capitals neither."""
    return regex.compile(pattern, regex.IGNORECASE | regex.VERBOSE)


_MONTH_OR_DAY = (
    r"(?: jan\w* | feb\w* | mar(?:ch)? | apr\w* | may | june? | july? | aug\w* | sep\w* | oct\w* | nov\w* | dec\w*"
)
_MONTH_OR_DAY += r"| (?:mon|tues?|wed(?:nes)?|thurs?|fri|sat(?:ur)?|sun)(?:day|s)? )"
_BEGINS = _compiled(r"^(?: since | from | as\ of | starting | seit | desde | depuis ) \s+ (?P<moment>.+)")
_ENDS = _compiled(r"^(?: until | till? | through | bis | hasta | jusqu'[àe]n? ) \s+ (?P<moment>.+)")
_RANGE = _compiled(
    r"^(?: (?:from|between)\s+(?P<begin>.+?)\s+(?:to|and|until|till?|through)\s+(?P<end>.+)"
    r"| (?P<begin>\d{4})\s?[-–—]\s?(?P<end>\d{4}) )$"
)
_LASTS = _compiled(r"^(?: for | seit | desde\ hace | depuis ) \s+ (?P<length> \S+ \s+ \w+ )$")
_COUNTED = _compiled(
    r"\b(?:ago|from\ now)$ | ^in\s+\w+\s+(?:minute|hour|day|week|month|year|decade)s?$"
    r"| ^(?:vor|hace|il\ y\ a|dans|há|daqui\ a|fa)\s"
)
_FILLER = _compiled(
    r"\b(?: way\ back | back | just | only | already | about | around | roughly | almost | like | early | late )\s+"
)
_NEAREST = _compiled(
    rf"^(?: on\s+ )? (?P<side> last | this\ past | next | this\ coming ) \s+ (?P<moment>{_MONTH_OR_DAY})$"
)
_VAGUE = _compiled(
    r"\b(?: every | each | usually | always | often | sometimes | daily | weekly | monthly | yearly | now | currently"
    r"| nowadays | (?:mon|tues|wednes|thurs|fri|satur|sun)days | weds | weekends | mornings | evenings | nights )\b"
    r"| ^\w+\s(?:minute|hour|day|week|month|year)s$ | \d+s\b"
    r"| ^\D*\d{1,3}$ (?<!\b(?:the|on)\s\d+) | \b\d{1,2}[/.]\d{1,2}[/.]\d{2,4}\b"
)
"""Habits, bare spans and numbers, decades, and dates whose day and month may be either."""
_MEANS = {"last night": "yesterday", "tonight": "today", "this morning": "today"}


def validity(when: str | None, temporal: Temporal, at: datetime | None) -> Validity:
    """What `when` says of a relationship in its temporal state, in a turn of the time `at`.

    - ongoing: a moment, `since X`, `for N years` → valid_at; `until X` → invalid_at, still to come.
    - completed: a moment, `until X`, `since X` → invalid_at; `from X to Y` → both.
    - future: a moment, `from X` → valid_at; `until X` → invalid_at; `from X to Y` → both.

    `N years ago` and `in N weeks` are counted from the day of `at`; a year, a month or a week (`last year`, `in March`,
    `next week`) is its first day. A day is its midnight, in the zone of `at`; a time of day is kept. Without a year the
    nearest one on the state's side of `at` is meant. Nothing is known without `at`; of seasons, feasts, habits (`on
    Fridays`), `recently` and `soon`; nor of a moment on the wrong side of `at`.
    """
    if at is None or not when or len(when) > LONGEST or _VAGUE.search(when):
        return UNKNOWN
    text = _FILLER.sub("", " ".join(when.split()))
    side: Direction = "future" if temporal is Temporal.FUTURE else "past"
    if (span := _RANGE.match(text)) and temporal is not Temporal.ONGOING:
        return Validity(_moment(span["begin"], at, side), _moment(span["end"], at, side))
    if lasting := _LASTS.match(text):
        return Validity(_moment(lasting["length"], at, "past", True)) if temporal is Temporal.ONGOING else UNKNOWN
    if ends := _ENDS.match(text):
        return Validity(None, _moment(ends["moment"], at, "past" if temporal is Temporal.COMPLETED else "future"))
    begins = _BEGINS.match(text)
    moment = _moment(begins["moment"] if begins else text, at, side)
    return Validity(None, moment) if temporal is Temporal.COMPLETED else Validity(moment)


def _moment(text: str, at: datetime, side: Direction, is_counted: bool = False) -> datetime | None:
    """The moment that the text names on this side of `at`; None when it names none, or one on the other side."""
    text = _MEANS.get(text.casefold(), text)
    if nearest := _NEAREST.match(text):
        if (nearest["side"].casefold() in ("last", "this past")) != (side == "past"):
            return None
        text = nearest["moment"]
    found = _parsed(text, at.replace(tzinfo=None), side, is_counted or _COUNTED.search(text) is not None)
    if found is None:
        return None
    moment = found.replace(tzinfo=at.tzinfo)
    if nearest and _first_moment(moment, "month") == _first_moment(at, "month") and moment.day == 1:
        return None  # `last March`, told in March
    is_right = moment <= at if side == "past" else moment >= at or moment == _first_moment(at, "day")
    return moment if is_right else None


@lru_cache(maxsize=1024)
def _parsed(text: str, base: datetime, side: Direction, is_counted: bool) -> datetime | None:
    try:
        return _read(text, base, side, is_counted)
    except (OverflowError, ValueError):  # a moment before the year 1, or after 9999
        return None


def _read(text: str, base: datetime, side: Direction, is_counted: bool) -> datetime | None:
    from dateparser.date import DateDataParser

    settings = {"RELATIVE_BASE": base, "PREFER_DATES_FROM": side, "RETURN_TIME_AS_PERIOD": True}
    for languages in LANGUAGES:
        found = DateDataParser(languages=list(languages), settings=settings).get_date_data(text)
        if found.date_obj is not None:
            moment = found.date_obj.replace(tzinfo=None)
            if found.period == "time":
                return moment if moment != base else None  # `now`, in any language
            return _first_moment(moment, "day" if is_counted else found.period or "day")
    return None


def _first_moment(moment: datetime, period: str) -> datetime:
    day = datetime.combine(moment, time(), moment.tzinfo)
    if period == "year":
        return day.replace(month=1, day=1)
    if period == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if period == "week" else day
