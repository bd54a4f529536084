"""The moment that English words name, seen from a turn: `March 3`, `on the 12th at 9am`, `last week`, `two years ago`.

Every word has to be understood: one that is not below makes the whole unknown. So does a day that no month has, a
weekday that the date contradicts, and a date whose day and month may be either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, time, timedelta
from typing import Literal

import regex

from observer.turns.durations import find_duration, months_later

Side = Literal["past", "future"]
MONTHS: Sequence[str] = "january february march april may june july august september october november december".split()
WEEKDAYS: Sequence[str] = "mon tue wed thu fri sat sun".split()
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third twenty-fourth "
    "twenty-fifth twenty-sixth twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first"
).split()
_DAYS = {"before yesterday": -2, "yesterday": -1, "last night": -1, "last evening": -1, "after tomorrow": 2,
         "tomorrow": 1}  # fmt: skip
"""Ends of phrases for a day -> days from the turn's own, which all others mean."""
_SHIFTS = {"last": -1, "this": 0, "next": 1, "before": -2, "after": 2}

_MONTH = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
_MONTH += r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
_WEEKDAY = r"(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?"
_WORDS = {
    "year_first": r"\d{4}(?P<mark>[-/.])\d{1,2}(?P=mark)\d{1,2} | (?:19|20)\d{6}",
    "year_last": r"\d{1,2}(?P<sign>[-/.])\d{1,2}(?P=sign)\d{4}",
    "year_month": r"\d{4}[-/]\d{1,2} | \d{1,2}/\d{4}",
    "year": r"(?: year\ )? (?:1[89]|2[01])\d\d",
    "ordinal": rf"(?: (?:the\ )? \d{{1,2}}(?:st|nd|rd|th) | the\ \d{{1,2}} ) (?!\ {_WEEKDAY}\b)",
    "clock": r"(?:at\ )? (?: \d{1,2}(?::\d\d){1,2}(?:\ ?[ap]m)? | \d{1,2}\ ?[ap]m | noon )",
    "number": r"\d{1,2}\.?",
    "which": rf"(?: last | past | next | coming | this(?:\ past|\ coming)? ) (?=\ (?:{_MONTH}|{_WEEKDAY})\b)",
    "month": rf"{_MONTH}\.?",
    "weekday": rf"{_WEEKDAY}\.?",
    "around": r"(?<!the\ ) (?P<shift>last|this|next)\ (?P<unit>week|month|year)"
    r" | the\ (?P<unit>week|month|year)\ (?: (?P<shift>before)\ last | (?P<shift>after)\ next )",
    "day": r"(?:the\ )? day\ (?:before\ yesterday|after\ tomorrow) | yesterday | today | tomorrow | tonight"
    r" | last\ (?:night|evening) | this\ (?:morning|afternoon|evening)",
    "part_of_day": r"(?:in\ the\ )? (?:morning|afternoon|evening|night) | at\ \d{1,2}(?:\ o'clock)?",
    "within": r"in | during",
    "filler": r"on | of\ the\ month | of | the | month\ of | (?:way\ )?back | early"
    r" | earlier(?=\ (?:today|this)) | later(?=\ today) | (?:at\ )? (?:the\ )? (?:start|beginning)\ of",
}
"""Each word or phrase that may stand in a date; what comes first is preferred."""
_DATE = regex.compile(
    rf"(?> (?: {'|'.join(f'(?P<{name}>{word})' for name, word in _WORDS.items())} ) (?:\ |$) )++", regex.VERBOSE
)
_JOINT = regex.compile(rf"(?<=\d)[-./](?={_MONTH}\b)|(?<=\b{_MONTH})[-./](?=\d)")
"""Between the parts of `3-Mar-2024`."""
_AS_OFTEN_AS_YOU_LIKE = {"filler", "part_of_day"}
_COUNTED = regex.compile(
    r"(?P<past>.+)\ (?:ago|back) | in\ (?P<future>.+?) (?: \ from\ now | (?:'s?|s')?\ time )?"
    r" | (?P<future>.+)\ (?: from\ (?:now|today) | hence )",
    regex.VERBOSE,
)


class _Unknown(Exception):
    """The words contradict one another, or may mean two things."""


def find_moment(text: str, at: datetime, side: Side, near: datetime | None = None) -> datetime | None:
    """The moment that the lower-case text names on this side of `at`; None when it names none, or one on the other.

    A year, month or week is its first day, a day its midnight. What the text leaves open, such as the year, is as
    near to `near` (by default `at`) as can be.
    """
    try:
        moment = _counted(text, at) or _date(text, at, side, near or at)
    except (_Unknown, OverflowError, ValueError):  # ValueError: a day that the month has not, a year before 1
        return None
    if moment is None:
        return None
    is_right = _is_on_side(moment, at, side) or (side == "future" and moment == _midnight(at))
    return moment if is_right else None


def _counted(text: str, at: datetime) -> datetime | None:
    """`two years ago`, `in two weeks`, `3 months from now`."""
    match = _COUNTED.fullmatch(text)
    duration = find_duration(match["past"] or match["future"]) if match else None
    if not match or not duration:
        return None
    return duration.before(at) if match["past"] else duration.after(at)


def _date(text: str, at: datetime, side: Side, near: datetime) -> datetime | None:
    match = _DATE.fullmatch(_with_digits(_JOINT.sub(" ", text)))
    if not match:
        return None
    found = {name: match.captures(name) for name in (*_WORDS, "shift", "unit") if match.captures(name)}
    if any(len(words) > 1 for name, words in found.items() if name not in _AS_OFTEN_AS_YOU_LIKE):
        return None
    words = {name: found[name][0] for name in found}
    day = _day(words, _parts(words, at), at, side, near)
    return _at_clock(day, words, text) if "clock" in words else day


def _with_digits(text: str) -> str:
    """Ordinals as digits, beside a month or after `the`: `at first` is no day."""
    has_month = any(month in text for month in MONTHS)
    for number, word in enumerate(_ORDINALS, 1):
        if word in text.replace(" ", "-"):
            spelled = word.replace("-", "[- ]")
            before = "(?<!-)" if has_month else "(?<=the )"
            text = regex.sub(rf"{before}\b{spelled}\b(?!-)", f"{number}th", text)
    return text


def _parts(words: dict[str, str], at: datetime) -> dict[str, int]:
    """What the words tell of year, month and day. Raises _Unknown when two of them tell the same."""
    told: dict[str, int] = {}
    for name, word in words.items():
        parts = _told(name, word, words, at)
        if told.keys() & parts:
            raise _Unknown
        told |= parts
    return told


def _told(name: str, word: str, words: dict[str, str], at: datetime) -> dict[str, int]:
    numbers = [int(number) for number in regex.findall(r"\d+", word)]
    if name == "year_first":
        year, month, day = numbers if len(numbers) == 3 else (int(word[:4]), int(word[4:6]), int(word[6:]))
        return {"year": year, "month": month, "day": day}
    if name == "year_last":
        return {"year": numbers[2]} | _day_and_month(numbers[0], numbers[1])
    if name == "year_month":
        year, month = sorted(numbers, reverse=True)
        if month == (year + 1) % 100 and word.startswith(str(year)):
            raise _Unknown  # `2011-12`: a month, or a winter
        return {"year": year, "month": month}
    if name in ("year", "ordinal", "number"):
        return {"year" if name == "year" else "day": numbers[0]}
    if name == "month":
        return {"month": next(number for number, month in enumerate(MONTHS, 1) if month.startswith(word[:3]))}
    if name == "day":
        there = at + timedelta(days=next((days for end, days in _DAYS.items() if word.endswith(end)), 0))
        return {"year": there.year, "month": there.month, "day": there.day}
    if name == "around":
        return _told_around(words["unit"], _SHIFTS[words["shift"]], words, at)
    return {}


def _day_and_month(one: int, other: int) -> dict[str, int]:
    """`25/11` and `11/25` can be read in one way only; `5/6` is 5 June or May 6."""
    if one != other and max(one, other) <= 12:
        raise _Unknown
    return {"day": max(one, other), "month": min(one, other)}


def _told_around(unit: str, shift: int, words: dict[str, str], at: datetime) -> dict[str, int]:
    """`last year`, `next month`, `the week after next`; the day of a week is the one that is named, or its first."""
    if unit == "year":
        return {"year": at.year + shift}
    if unit == "month":
        there = months_later(at, shift)
        return {"year": there.year, "month": there.month}
    weekday = WEEKDAYS.index(words["weekday"][:3]) if "weekday" in words else 0
    there = at + timedelta(weeks=shift, days=weekday - at.weekday())
    return {"year": there.year, "month": there.month, "day": there.day}


def _day(words: dict[str, str], told: dict[str, int], at: datetime, side: Side, near: datetime) -> datetime:
    """The first day of what is told, as near as can be. Raises _Unknown and ValueError."""
    year, month, day = told.get("year"), told.get("month"), told.get("day")
    weekday = WEEKDAYS.index(words["weekday"][:3]) if "weekday" in words else None
    is_day = day is not None or (not told and weekday is not None)
    if "which" in words:
        _check_which(words["which"], told, weekday, at, side)
    if not told and weekday is None and "clock" in words:
        if _is_either_half(words, ""):
            raise _Unknown
        return _nearest(near, side, lambda there: _is_on_side(_at_clock(there, words, ""), near, side))
    first = 1 if day is None else day
    if year is not None and (month is not None or day is None):
        found = datetime(year, 1 if month is None else month, first)
    elif month is not None:
        not_now = _midnight(at) if "which" in words else None
        found = _nearest(near, side, lambda there: (there.month, there.day) == (month, first) and there != not_now)
    elif year is None and "ordinal" in words and "within" not in words:
        found = _nearest(near, side, lambda there: there.day == day)
    elif is_day and not told:
        found = _nearest(near, side, lambda there: there.weekday() == weekday and there != _midnight(near))
    else:
        raise _Unknown
    if ("weekday" in words or "clock" in words) and not is_day:
        raise _Unknown
    if weekday not in (None, found.weekday()):
        raise _Unknown
    return found


def _check_which(which: str, told: dict[str, int], weekday: int | None, at: datetime, side: Side) -> None:
    """`last` and `next` are of one side each, and what is `this` is not of last year or week.

    Raises _Unknown, also for the month or the weekday that it is now.
    """
    is_other_side = side == "future" if which.endswith(("last", "past")) else side == "past" and which != "this"
    ahead = told.get("month", 0) - at.month if told else (weekday or 0) - at.weekday()
    is_now = ahead == 0 and which != "next" and (bool(told) or which == "this")
    if is_other_side or is_now or (side == "past" and which == "this" and ahead > 0) or "year" in told:
        raise _Unknown


def _nearest(near: datetime, side: Side, fits: Callable[[datetime], bool]) -> datetime:
    """The nearest day that fits on this side, the own day of `near` included."""
    step = timedelta(days=-1 if side == "past" else 1)
    found = next((day for n in range(9 * 366) if fits(day := _midnight(near) + n * step)), None)
    if found is None:
        raise _Unknown
    return found


def _is_on_side(moment: datetime, at: datetime, side: Side) -> bool:
    return moment <= at if side == "past" else moment >= at


def _is_either_half(words: dict[str, str], text: str) -> bool:
    """Whether the time may be of the morning or of the evening: `5:30`, not `05:30`, nor beside `2024-05-06`."""
    is_short = regex.fullmatch(r"(?:at )?(?:[1-9]|1[01]):\d\d", words["clock"].strip())
    return bool(is_short) and "year_first" not in words and not regex.search("morning|afternoon|evening|night", text)


def _at_clock(day: datetime, words: dict[str, str], text: str) -> datetime:
    """The day at `9am`, `21:30` or `noon`; `4:30` of an afternoon is 16:30, of an unknown half of the day left out.

    Raises ValueError where there is no such time, _Unknown where its day may be two.
    """
    clock = words["clock"].strip()
    if _is_either_half(words, text):
        return day
    if clock.endswith("noon"):
        return day.replace(hour=12)
    hour, minute, second, *_ = [*map(int, regex.findall(r"\d+", clock)), 0, 0]
    if clock.endswith("m"):
        if not 1 <= hour <= 12:
            raise _Unknown
        hour = hour % 12 + 12 * clock.endswith("pm")
    elif regex.search("afternoon|evening|night", text) and hour <= 12:
        if "night" in text and not 5 < hour < 12:
            raise _Unknown
        hour = hour % 12 + 12
    if "night" in text and hour <= 5:
        raise _Unknown  # of the night's own day, or of the next
    return datetime.combine(day, time(hour, minute, second))


def _midnight(moment: datetime) -> datetime:
    return datetime.combine(moment, time())
