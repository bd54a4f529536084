"""Time expressions of other languages as English that `moments` reads. What dateparser does not know stays unknown."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import regex

from observer.turns.durations import find_duration
from observer.turns.moments import MONTHS, WEEKDAYS

LANGUAGES = {
    r"\p{Latin}{2}": "de fr es pt it nl pl sv da tr",
    r"\p{Cyrillic}": "uk ru",
    r"[\p{Han}\p{Kana}\p{Hira}\p{Hang}]": "ja zh ko",
}
"""Languages by what a text has to hold of their script."""
_DAY_ARTICLE = regex.compile(r"^(?:am|zum|den|dem|der|le|au|el|al|il|op de|op|no dia|em dia|dia) (?=\d)")
_ARTICLE = regex.compile(
    r"^(?:(?:[ai]m(?! morgen)|zu[mr]|dem|em|en|el|la|los|las|il|le|les|die|das|den|de|du|in|nel|na|no|op|we?|i|på"
    r"|во?|у) |l')"
)
_ORDINAL = regex.compile(r"\b(\d{1,2})(?:\.?[ºª°]|er|ten|ter|te|-?(?:го|е|ое|є)|:?e|-go)(?= |$)")
_EASTERN = regex.compile(
    r"(?:(?P<year>\d{4})[年년] ?)?(?:(?P<month>\d{1,2})[月월] ?)?(?:(?P<day>\d{1,2})(?(month)[日号號일]|[号號]))?"
)
_COUNTED = regex.compile(
    r"(?:vor|in|e[nm](?= u[nm])|i(?= e[nt]t? )|hace|dentro de|il y a|dans|h[áa]|daqui a|fa|för|om|za|через|за)"
    r" | (?:fa|temu|geleden|siden|sedan|atr[áa]s|назад|тому|önce|sonra)$|[前전後후]$"
)
"""`vor einem Jahr` is counted from the day, `letztes Jahr` is a year of the calendar; dateparser says one for both."""
_OF_THE_CALENDAR = {"2 week ago": "the week before last"} | {
    template.format(unit): word.format(unit)
    for unit in ("year", "month", "week")
    for template, word in (("1 {} ago", "last {}"), ("0 {} ago", "this {}"), ("in 1 {}", "next {}"))
}
_SHORT = regex.compile(r"\p{Latin}{1,3}\.?")
"""`ago` is August in Spanish, `do` Thursday in German: alone such a word says nothing, beside a number it does."""
_HABIT = regex.compile(r"(?:les?|il|la|los|las) ")
"""`le lundi` and `los lunes` are every Monday."""
_WHOLE_MONTHS = frozenset({"mai", "maj", "mei"})
_DAYS = {"1 day ago": "yesterday", "0 day ago": "today", "0 day": "today", "in 1 day": "tomorrow"}


@lru_cache(maxsize=1024)
def translations(text: str) -> tuple[str, ...]:
    """What the lower-case text may be in English, one for each language that knows all of its words."""
    if (date := _EASTERN.fullmatch(text)) and any(date.groups()):
        month = MONTHS[int(date["month"]) - 1] if date["month"] and 1 <= int(date["month"]) <= 12 else date["month"]
        day = f"the {date['day']}" if date["day"] else None
        return (" ".join(filter(None, [day, month, date["year"]])),)
    plain, n_ordinals = _ORDINAL.subn(r"\1", text)
    is_day = bool(n_ordinals or _DAY_ARTICLE.match(plain))
    if is_day and (number := _DAY_ARTICLE.sub("", plain)).rstrip(".").isdecimal():
        return (f"the {number.rstrip('.')}",)
    spellings = dict.fromkeys([plain, _DAY_ARTICLE.sub("", plain), _ARTICLE.sub("", plain)])
    said = tuple(dict.fromkeys(_as_said(english, text, is_day) for english in _translated([*spellings])))
    if _SHORT.fullmatch(word := _ARTICLE.sub("", plain)) and word not in _WHOLE_MONTHS:
        return tuple(english for english in said if english not in MONTHS and english[:3] not in WEEKDAYS)
    if _HABIT.match(text):
        return tuple(english for english in said if " " in english or english[:3] not in WEEKDAYS)
    if any(map(find_duration, said)):
        return tuple(english for english in said if not _is_misread(english, text))
    return said


def _is_misread(english: str, amount: str) -> bool:
    """`i 3 år` is for three years in Scandinavia: neither in three years nor, without its ring, Turkish 3 December."""
    return any(month in english for month in MONTHS) or (amount.startswith("i ") and english.startswith("in "))


def _as_said(english: str, text: str, is_day: bool) -> str:
    """The English that a person would use, with what dateparser drops of the text."""
    said = _DAYS.get(english, english)
    if not _COUNTED.search(text):
        said = _OF_THE_CALENDAR.get(said, said)
    said = regex.sub(r"\b(\d{4}) year$", r"\1", said)  # `2019 года`
    if said != text:
        said = regex.sub(r"\b\d{1,2}:\d\d\b(?!:| ?[ap]m)", r"\g<0>:00", said)  # 24 hours, unlike English `5:30`
    return regex.sub(r"^(\d{1,2})\b\.?(?!:)", r"the \1", said) if is_day else said


def _translated(spellings: list[str]) -> Iterator[str]:
    """What dateparser makes of the first spelling that a language knows, of each language of the text's script."""
    from dateparser.conf import settings
    from dateparser.utils import normalize_unicode

    for script, languages in LANGUAGES.items():
        for locale in map(_locale, languages.split()) if regex.search(script, spellings[0]) else ():
            for text in dict.fromkeys([*spellings, *map(normalize_unicode, spellings)]):
                if locale.is_applicable(text, False, settings=settings):
                    yield " ".join(locale.translate(text, keep_formatting=True, settings=settings).split())


@cache
def _locale(language: str) -> Any:
    return _loader().get_locale(language)


@cache
def _loader() -> Any:
    from dateparser.languages.loader import LocaleDataLoader

    return LocaleDataLoader()
