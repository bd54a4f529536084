"""From a time expression and the turn's time to when a relationship began to hold and when it ceased.

Which of the two a moment is, is decided here; what moment the words name, by `moments`.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime

import regex

from observer.schema import Temporal
from observer.turns.durations import find_duration
from observer.turns.moments import Side, find_moment
from observer.turns.translation import translations


@dataclass(frozen=True)
class Validity:
    """When it began to hold and when it ceased; None is not known."""

    valid_at: datetime | None = None
    invalid_at: datetime | None = None


UNKNOWN = Validity()
LONGEST = 100
"""Characters of a time expression; what is longer is none."""


def _compiled(pattern: str) -> regex.Pattern[str]:
    """Blanks in the pattern mean nothing."""
    return regex.compile(pattern, regex.VERBOSE)


_BEGINS = _compiled(
    r"(?: since | ever\ since | from | as\ (?:of|from) | starting(?:\ (?:from|in|on))? | seit(?:\ dem)? | ab(?:\ dem)?"
    r" | desde | depuis | dès | à\ partir\ de | dal? | sinds | vanaf | od | sedan | från | siden | fra | со? | з | від"
    r" )\ (?P<moment>.+?) (?:\ on(?:wards?)?)? | (?P<moment>.+?) (?: から | 以来 | 부터 | \ onwards? )"
)
_ENDS = _compiled(
    r"(?: (?: until | till? | up\ (?:to|until) | bis | hasta | até | fino(?:\ a)? | tot | (?:aż\ )?do"
    r" | tills | indtil | до )\ | jusqu'(?:(?:à|en)\ )? )(?P<moment>.+) | (?P<moment>.+?) (?: まで | 까지 )"
)
_FROM_TO = {
    "from|between": "to|and|until|till?", "von|vom": "bis(?: zum)?", "desde|del?": "hasta|al?",
    "de|du|depuis": "à|au|jusqu'(?:à|en|au)", "dal?": "al?", "van": "tot", "od": "do", "с|від": "по|до",
}  # fmt: skip
_RANGES = [regex.compile(rf"(?:{begin}) (?P<begin>.+?) (?:{end}) (?P<end>.+)") for begin, end in _FROM_TO.items()]
_RANGES.append(regex.compile(r"(?P<begin>\d{4})-(?P<end>\d{4})|(?=.*\d)(?P<begin>.+?) (?:to|until|-) (?P<end>.+)"))
_LASTS = _compiled(
    r"(?: (?:(?:for|over)\ )? (?:the|these)\ (?:last|past) | for | since | seit | desde(?:\ hace)? | depuis | da"
    r" | sinds | od )\ (?P<length>.+?) (?:\ now)? | (?P<length>.+?)\ now"
)
_ABOUT = regex.compile(
    r"\b(?:about|almost|already|approximately|around|circa|exactly|just|like|nearly|only|roughly|some ?time) "
)
"""Words that leave the moment where it is."""
_A_UNIT = regex.compile(r"^(?=(?:year|month|week|decade|fortnight)$)")


def validity(when: str | None, temporal: Temporal, at: datetime | None) -> Validity:
    """What `when` says of a relationship in its temporal state, in a turn of the time `at`.

    - ongoing: a moment, `since X`, `for N years` → valid_at; `until X` → invalid_at, still to come.
    - completed: a moment, `until X`, `since X` → invalid_at; `from X to Y` → both.
    - future: a moment, `from X` → valid_at; `until X` → invalid_at; `from X to Y` → both.

    `N years ago` and `in N weeks` are counted from the day of `at`; a year, a month or a week (`last year`, `in March`,
    `next week`) is its first day. A day is its midnight, in the zone of `at`; a time of day is kept. What is left open,
    such as the year of `March 3` or the month of `the 3rd`, is the nearest on the state's side of `at`. Nothing is
    known without `at`; of quarters, seasons, feasts, decades, ends (`late March`, `through May`), habits (`on
    Fridays`), spans (`in the last year`), `recently` and `soon`; of dates that no calendar has (31 April) or that may
    be two (05/06/2024); nor of a moment on the wrong side of `at`. What may be two times (`tomorrow at 5:30`) is a day.
    """
    if at is None or not when or len(when) > LONGEST:
        return UNKNOWN
    held = _validity(_plain(when), temporal, at.replace(tzinfo=None))
    zoned = [moment and moment.replace(tzinfo=at.tzinfo) for moment in (held.valid_at, held.invalid_at)]
    return Validity(*zoned)


def _plain(when: str) -> str:
    """Lower case, plain digits and dashes, single blanks, no commas between words."""
    text = unicodedata.normalize("NFKC", regex.sub(r"(?<=\d)(?: ?½| 1/2(?![\d/]))", ".5", when)).lower()
    text = regex.sub(r"(?<=\d)t(?=\d)", " ", regex.sub(r"[‐‑‒–—−]", "-", text.replace("’", "'")))
    text = regex.sub(r"\b([ap])\.m\.?", r"\1m", regex.sub(r",(?= )", " ", " ".join(text.split())))
    return _ABOUT.sub("", " ".join(text.split()).strip(" .,;:!?'\"()[]"))


def _validity(text: str, temporal: Temporal, at: datetime) -> Validity:
    side: Side = "future" if temporal is Temporal.FUTURE else "past"
    if lasting := _LASTS.fullmatch(text):
        for length in (english := _A_UNIT.sub("a ", lasting["length"]), *translations(english)):
            if duration := find_duration(length):
                return Validity(duration.before(at)) if temporal is Temporal.ONGOING else UNKNOWN
    if ends := _ENDS.fullmatch(text):
        return Validity(None, _moment(ends["moment"], at, "past" if temporal is Temporal.COMPLETED else "future"))
    for span in (pattern.fullmatch(text) for pattern in _RANGES if temporal is not Temporal.ONGOING):
        if span and (held := _between(span["begin"], span["end"], at, side)):
            return held
    begins = _BEGINS.fullmatch(text)
    moment = (_moment(begins["moment"], at, side) if begins else None) or _moment(text, at, side)
    return Validity(None, moment) if temporal is Temporal.COMPLETED else Validity(moment)


def _between(begin: str, end: str, at: datetime, side: Side) -> Validity | None:
    """Both ends, the one that is nearer to the turn first: what the other leaves open is near to that."""
    if side == "past":
        invalid_at = _moment(end, at, side)
        valid_at = _moment(begin, at, side, invalid_at)
    else:
        valid_at = _moment(begin, at, side)
        invalid_at = _moment(end, at, side, valid_at)
    return Validity(valid_at, invalid_at) if valid_at and invalid_at and valid_at <= invalid_at else None


def _moment(text: str, at: datetime, side: Side, near: datetime | None = None) -> datetime | None:
    """What English says; else what the other languages that know the words say, if it is the same."""
    if moment := find_moment(text, at, side, near):
        return moment
    if find_moment(text, at, "past" if side == "future" else "future"):
        return None  # `2 y ago` is no 2 August
    found = {find_moment(english, at, side, near) for english in translations(text)} - {None}
    return found.pop() if len(found) == 1 else None
