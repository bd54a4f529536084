"""Amounts of time in words: `two and a half years`, `18 months`, `a fortnight`. Only what is exact: `a few years`,
`over a year` and `2.3 months` are none."""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from fractions import Fraction

import regex

_UNITS = {
    "decade": ("months", 120), "year": ("months", 12), "yr": ("months", 12), "y": ("months", 12),
    "month": ("months", 1), "mo": ("months", 1), "fortnight": ("days", 14), "week": ("days", 7), "wk": ("days", 7),
    "w": ("days", 7), "day": ("days", 1), "d": ("days", 1), "hour": ("seconds", 3600), "hr": ("seconds", 3600),
    "h": ("seconds", 3600), "minute": ("seconds", 60), "min": ("seconds", 60),
}  # fmt: skip
"""A unit of time -> what it is counted in, and how many of those it has."""
_ONES = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_NUMBERS = {word: Fraction(number) for number, word in enumerate(_ONES, 1)} | {"a": Fraction(1), "an": Fraction(1)}
for _ten, _tens in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2):
    _NUMBERS |= {_tens: Fraction(10 * _ten)}
    _NUMBERS |= {f"{_tens}{dash}{one}": Fraction(10 * _ten + n) for n, one in enumerate(_ONES[:9], 1) for dash in "- "}
_PART = (
    r"(?P<amount>half an?|\d{1,4}(?:[.,]\d{1,2})?|\b(?!and\b)[a-z]+(?:[- ][a-z]+)?)(?P<more> and a half)?"
    rf"(?: |(?<=\d))(?P<unit>{'|'.join(_UNITS)})s?(?P<half> and a half)?"
)
_WHOLE, _EACH = regex.compile(rf"{_PART}(?: (?:and )?{_PART})*"), regex.compile(rf"{_PART}(?!\w)")


@dataclass(frozen=True)
class Duration:
    """How far to go, in months, then days, then seconds."""

    months: int = 0
    days: int = 0
    seconds: int = 0

    def after(self, moment: datetime) -> datetime | None:
        """So much later: the day, unless hours or minutes are counted. None outside of the years 1 to 9999."""
        try:
            there = months_later(moment, self.months) + timedelta(days=self.days, seconds=self.seconds)
        except (OverflowError, ValueError):
            return None
        return there if self.seconds else datetime.combine(there, time())

    def before(self, moment: datetime) -> datetime | None:
        """So much earlier, likewise."""
        return Duration(-self.months, -self.days, -self.seconds).after(moment)


def months_later(moment: datetime, months: int) -> datetime:
    """The same day of another month, or its last. Raises ValueError outside of the years 1 to 9999."""
    year, month = divmod(12 * moment.year + moment.month - 1 + months, 12)
    if not 1 <= year <= 9999:
        raise ValueError(year)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, monthrange(year, month + 1)[1]))


def find_duration(text: str) -> Duration | None:
    """The amount that the whole lower-case text names, if it does."""
    if not _WHOLE.fullmatch(text):
        return None
    counted: dict[str, Fraction] = {}
    for part in _EACH.finditer(text):
        amount = _number(part["amount"])
        if amount is None:
            return None
        name, size = _UNITS[part["unit"]]
        counted[name] = counted.get(name, Fraction()) + size * (
            amount + Fraction(bool(part["more"] or part["half"]), 2)
        )
    if any(number.denominator > 1 for number in counted.values()):
        return None
    return Duration(**{name: int(number) for name, number in counted.items()})


def _number(text: str) -> Fraction | None:
    if text.startswith("half"):
        return Fraction(1, 2)
    return Fraction(text.replace(",", ".")) if text[0].isdigit() else _NUMBERS.get(text)
