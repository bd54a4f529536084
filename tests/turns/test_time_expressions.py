"""Time expressions become the begin or the end of a relationship, or stay unknown."""

from __future__ import annotations

import calendar
import json
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.paths import EXTRACTION_JSONL
from observer.schema import Temporal
from observer.turns.time_expressions import UNKNOWN, Validity, validity

AT = datetime(2026, 11, 22, 15, 30)
"""A Sunday."""
ONGOING, COMPLETED, FUTURE = Temporal.ONGOING, Temporal.COMPLETED, Temporal.FUTURE


def day(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("when", "begin"),
    [
        ("last March", "2026-03-01"),
        ("back in March", "2026-03-01"),
        ("in November", "2026-11-01"),
        ("since 2019", "2019-01-01"),
        ("since like 2019", "2019-01-01"),
        ("Since last year", "2025-01-01"),
        ("in March 2020", "2020-03-01"),
        ("last week", "2026-11-09"),
        ("last Friday", "2026-11-20"),
        ("on Sunday", "2026-11-15"),
        ("last night", "2026-11-21"),
        ("yesterday", "2026-11-21"),
        ("today", "2026-11-22"),
        ("two years ago", "2024-11-22"),
        ("about a year ago", "2025-11-22"),
        ("five minutes ago", "2026-11-22T15:25"),
        ("for 3 years", "2023-11-22"),
        ("for about three years", "2023-11-22"),
        ("seit märz", "2026-03-01"),
        ("seit zwei Jahren", "2024-11-22"),
        ("em fevereiro", "2026-02-01"),
        ("il y a deux ans", "2024-11-22"),
        ("去年", "2025-01-01"),
        ("since the twenty-first", "2026-11-21"),
        ("first of May", "2026-05-01"),
        ("Friday the 13th", "2026-11-13"),
        ("the 3rd of last month", "2026-10-03"),
        ("in March last year", "2025-03-01"),
        ("tuesday last week", "2026-11-10"),
        ("March 3rd, 2024", "2024-03-03"),
        ("9am on March 3", "2026-03-03T09:00"),
        ("Sept. 9th", "2026-09-09"),
        ("03/2024", "2024-03-01"),
        ("25/11/2024", "2024-11-25"),
        ("11.25.2024", "2024-11-25"),
        ("2024-05-06T10:00", "2024-05-06T10:00"),
        ("20240506", "2024-05-06"),
        ("friday at 4:30 in the afternoon", "2026-11-20T16:30"),
        ("the week before last", "2026-11-02"),
        ("the day before yesterday", "2026-11-20"),
        ("3-Mar-2024", "2024-03-03"),
        ("1.Jan.2020", "2020-01-01"),
        ("Mar-2020", "2020-03-01"),
        ("the third of the month", "2026-11-03"),
        ("at the start of 2024", "2024-01-01"),
        ("21/2/2024", "2024-02-21"),
        ("for a year", "2025-11-22"),
        ("for a month", "2026-10-22"),
        ("for half a year", "2026-05-22"),
        ("3 1/2 years ago", "2023-05-22"),
        ("for five years now", "2021-11-22"),
        ("for 2.5 years", "2024-05-22"),
        ("for 1½ years", "2025-05-22"),
        ("for a year and two months", "2025-09-22"),
        ("two and a half years ago", "2024-05-22"),
        ("a fortnight ago", "2026-11-08"),
        ("2y ago", "2024-11-22"),
        ("3 w ago", "2026-11-01"),
        ("18mo ago", "2025-05-22"),
        ("yesterday at 5:30", "2026-11-21"),
        ("on Friday at 10:30", "2026-11-20"),
        ("yesterday at 09:30", "2026-11-21T09:30"),
        ("yesterday at 12:30", "2026-11-21T12:30"),
        ("this Saturday", "2026-11-21"),
        ("last night at 11pm", "2026-11-21T23:00"),
        ("twenty-one days ago", "2026-11-01"),
        ("for the past three years", "2023-11-22"),
        ("the last five years", "2021-11-22"),
        ("2019 onwards", "2019-01-01"),
        ("seit dem 3. Mai", "2026-05-03"),
        ("am 3.", "2026-11-03"),
        ("am Freitag", "2026-11-20"),
        ("vor einem Jahr", "2025-11-22"),
        ("1 ano atrás", "2025-11-22"),
        ("先々週", "2026-11-02"),
        ("letztes Jahr", "2025-01-01"),
        ("le 1er mai", "2026-05-01"),
        ("depuis 5 ans", "2021-11-22"),
        ("el 3 de mayo", "2026-05-03"),
        ("no dia 3 de maio", "2026-05-03"),
        ("op de 3e", "2026-11-03"),
        ("3-го мая", "2026-05-03"),
        ("с 2019 года", "2019-01-01"),
        ("5月3日", "2026-05-03"),
        ("3号", "2026-11-03"),
        ("2024년 5월 3일", "2024-05-03"),
    ],
)
def test_what_is_ongoing_began_then(when: str, begin: str) -> None:
    assert validity(when, ONGOING, AT) == Validity(valid_at=day(begin))


@pytest.mark.parametrize(
    ("when", "begin", "end"),
    [
        ("in 2019", None, "2019-01-01"),
        ("back in 2019", None, "2019-01-01"),
        ("last month", None, "2026-10-01"),
        ("til last year", None, "2025-01-01"),
        ("until Friday", None, "2026-11-20"),
        ("from 2015 to 2019", "2015-01-01", "2019-01-01"),
        ("2015-2019", "2015-01-01", "2019-01-01"),
        ("between May and July", "2026-05-01", "2026-07-01"),
        ("from March to May 2020", "2020-03-01", "2020-05-01"),
        ("from May 2019 to June", "2019-05-01", "2026-06-01"),
        ("from November to February", "2025-11-01", "2026-02-01"),
        ("from the 3rd to the 5th", "2026-11-03", "2026-11-05"),
        ("2019 - 2021", "2019-01-01", "2021-01-01"),
        ("vom 3. Mai bis zum 5. Mai", "2026-05-03", "2026-05-05"),
        ("de 2015 à 2019", "2015-01-01", "2019-01-01"),
    ],
)
def test_what_is_completed_ended_then(when: str, begin: str | None, end: str) -> None:
    assert validity(when, COMPLETED, AT) == Validity(day(begin) if begin else None, day(end))


@pytest.mark.parametrize(
    ("when", "begin", "end"),
    [
        ("next week", "2026-11-23", None),
        ("next month", "2026-12-01", None),
        ("in March", "2027-03-01", None),
        ("in two years", "2028-11-22", None),
        ("in six months", "2027-05-22", None),
        ("tomorrow", "2026-11-23", None),
        ("tomorrow at 3pm", "2026-11-23T15:00", None),
        ("today", "2026-11-22", None),
        ("next Friday", "2026-11-27", None),
        ("from the 3rd of May", "2027-05-03", None),
        ("until Sunday", None, "2026-11-29"),
        ("from Monday to Friday", "2026-11-23", "2026-11-27"),
        ("on the 12th at 9am", "2026-12-12T09:00", None),
        ("3 months from now", "2027-02-22", None),
        ("a year from now", "2027-11-22", None),
        ("2 weeks from today", "2026-12-06", None),
        ("in two weeks' time", "2026-12-06", None),
        ("in a fortnight", "2026-12-06", None),
        ("en un año", "2027-11-22", None),
        ("em uma semana", "2026-11-29", None),
        ("later today", "2026-11-22", None),
        ("this December", "2026-12-01", None),
        ("le 12 à 9h30", "2026-12-12T09:30", None),
        ("the day after tomorrow", "2026-11-24", None),
        ("the week after next", "2026-11-30", None),
        ("monday next week", "2026-11-23", None),
        ("on the 5th of next month", "2026-12-05", None),
        ("in May next year", "2027-05-01", None),
        ("le 12 à 9h", "2026-12-12T09:00", None),
        ("in drei Wochen", "2026-12-13", None),
        ("через три недели", "2026-12-13", None),
    ],
)
def test_what_is_future_will_begin_then(when: str, begin: str | None, end: str | None) -> None:
    assert validity(when, FUTURE, AT) == Validity(day(begin) if begin else None, day(end) if end else None)


def test_what_is_ongoing_until_a_day_to_come_ends_then() -> None:
    assert validity("till Friday", ONGOING, AT) == Validity(invalid_at=day("2026-11-27"))


def ordinal(day: int) -> str:
    return f"{day}{'th' if 11 <= day <= 13 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def dates(at: date, temporal: Temporal) -> Iterator[date]:
    """Day by day from the turn to the state's side."""
    return (at + timedelta(days=n if temporal is FUTURE else -n) for n in count())


@given(st.dates(date(1950, 1, 1), date(2080, 1, 1)), st.sampled_from([COMPLETED, FUTURE]), st.integers(1, 31),
       st.sampled_from(["on the {}", "the {}", "{}", "until the {}", "from the {}"]))  # fmt: skip
def test_a_day_of_the_month_is_the_nearest_of_its_number(at: date, temporal: Temporal, day: int, form: str) -> None:
    held = validity(form.format(ordinal(day)), temporal, datetime.combine(at, datetime.min.time()))
    found = held.valid_at or held.invalid_at
    assert found
    assert found.date() == next(there for there in dates(at, temporal) if there.day == day)


@given(st.dates(date(1950, 1, 1), date(2080, 1, 1)), st.sampled_from([COMPLETED, FUTURE]), st.integers(1, 12),
       st.integers(1, 31), st.booleans(), st.sampled_from(
           ["{month} {day}", "{day} {month}", "{month} {nth}", "the {nth} of {month}", "on {month} {day}",
            "on the {nth} of {month}", "{nth} {month}", "{month} the {nth}", "since {month} {day}"]))  # fmt: skip
def test_a_day_of_a_month_is_the_nearest_one_or_none(
    at: date, temporal: Temporal, month: int, day: int, is_short: bool, form: str
) -> None:
    name = calendar.month_abbr[month] if is_short else calendar.month_name[month]
    when = form.format(month=name, day=day, nth=ordinal(day))
    held = validity(when, temporal, datetime.combine(at, datetime.min.time()))
    found = held.valid_at or held.invalid_at
    if day > calendar.monthrange(2024, month)[1]:
        assert found is None
    else:
        assert found
        assert found.date() == next(there for there in dates(at, temporal) if (there.month, there.day) == (month, day))


WORDS = (
    "the on in of at since until from to and or last next this week month year years day days ago quarter Q3 KW W12 "
    "spring summer March may Dec Friday monday am pm 9am 10:30 3rd 12th 2024 2019 31 3 5 12 30 05-06-2024 5.6. 5/6 90s "
    "2024-05-06 first third half am. le el den op de mai maggio марта 3月 日 seit bis hasta depuis now early end mid"
).split()


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), st.sampled_from(Temporal))
def test_every_number_of_the_text_is_in_the_moment(when: str, temporal: Temporal) -> None:
    """A number that is taken for something else makes a wrong date."""
    held = validity(when, temporal, AT)
    found = [moment for moment in (held.valid_at, held.invalid_at) if moment]
    if not found or {"ago", "year", "years", "day", "days", "month", "week"} & set(when.split()):
        return
    told = {part for m in found for part in (m.year, m.month, m.day, m.hour, m.hour % 12, m.minute)}
    assert set(map(int, re.findall(r"\d+", when))) <= told


IMPOSSIBLE = (
    "31 September|April 31st|31 April|30 Feb|Feb 29, 2023|the 45th|2024-13-01|2024-02-30|32.1.2024|"
    "4月31日|March 0|2024-00-10|2024-01-00|0/2024"
)
AMBIGUOUS = "05-06-2024|05/06/2024|5.6.2024|05/06/24|25/12/24|24-05-06|5/6|am 3.5.|2011-12|3 March 24|Monday 3 March"
SPANS = (
    "Q3 2024|in Q3|third quarter of 2024|the 3rd quarter|H1 2024|week 12|KW 12|2024-W12|spring 2020|"
    "summer of 2020|last fall|winter 2020/21|the 90s|since the 1990s|2020s|the nineties|the early 2000s|"
    "mid 2020|mid-March|end of March|late 2020|the 20th century|this weekend|the week of March 3|"
    "3-5 March|March 3-5|3 and 4 March|2019 or 2020|2019/20|late March|in late May 2024|through May|thru 2020|"
    "in the last year|in the next month|during the last week|the next year|in the last month of 2024"
)
FEASTS = (
    "christmas 2020|at christmas|since easter|new year 2020|on new year's day|thanksgiving|halloween|on my birthday"
)
OTHERS = (
    "at first|the first time|the first monday of march|the third friday in May|last friday of May|"
    "friday week|fridays|monday to friday|every March 3|twice a week|24/7|by the 10th|before the 5th|"
    "after the 3rd|on 3|in 3|at 5|98|back in '98|in my 20s|since I was 12|a couple of years ago|"
    "years ago|for weeks|over a year ago|less than a year ago|in the last two years|for the next two weeks|"
    "for another 2 years|1.5 months ago|2 years old|at 25:00|at 13pm|since forever|the other day|"
    "these days|one day|this time last year|the next day|between 2 and 3 years ago|from 2019 to 2015|3日|"
    "the 3rd last year|on the 5th this year|the 3rd 2024|1,000 days ago|3,000 years ago|vor 1.000 Jahren|30m ago|"
    "at 5:30|11:45|last night at 1am|at 2am last night|tonight at 3am|last night at 12am|later this year|"
    "later this month|los lunes|le lundi|il lunedì|la domenica|i et år"
)


VAGUE = (
    "soon|recently|lately|now|зараз|seit kurzem|next summer|in the spring|at easter|before xmas|new year|on wednesdays|"
    "every other friday|in a few days|a few days ago|since we were 12|since he saw that documentary|next payday|"
    "the 90s|12|3 years|03/04/2020||   "
)
OF_TWO_LANGUAGES = "i 3 år|3 ar|ago|in set|out|so|am Morgen"
"""`i 3 år` is for three years in Danish, and 3 December to a Turkish reader; `ago` is August in Spanish."""


@pytest.mark.parametrize("temporal", Temporal)
@pytest.mark.parametrize(
    "when", "|".join([IMPOSSIBLE, AMBIGUOUS, SPANS, FEASTS, OTHERS, VAGUE, OF_TWO_LANGUAGES]).split("|")
)
def test_what_is_vague_no_moment_or_may_be_two_stays_unknown(when: str, temporal: Temporal) -> None:
    assert validity(when, temporal, AT) == UNKNOWN


@pytest.mark.parametrize(
    ("when", "temporal"),
    [
        ("next week", ONGOING),
        ("tomorrow", COMPLETED),
        ("yesterday", FUTURE),
        ("last November", COMPLETED),
        ("this December", COMPLETED),
        ("this December", ONGOING),
        ("2 y ago", FUTURE),
    ],
)
def test_a_moment_on_the_wrong_side_of_the_turn_or_of_either_stays_unknown(when: str, temporal: Temporal) -> None:
    """Told in November, last November may be this one."""
    assert validity(when, temporal, AT) == UNKNOWN


def test_this_thursday_told_on_a_wednesday_is_no_past() -> None:
    wednesday = datetime(2026, 11, 25, 15, 30)
    assert validity("this Thursday", COMPLETED, wednesday) == UNKNOWN
    assert validity("this Tuesday", COMPLETED, wednesday) == Validity(invalid_at=day("2026-11-24"))


@pytest.mark.parametrize(("when", "first"), [("next February", "2024-02-01"), ("next Feb 29", "2024-02-29")])
def test_the_next_of_a_date_is_not_today(when: str, first: str) -> None:
    found = validity(when, FUTURE, day(first)).valid_at
    assert found
    assert found > day(first)


def test_without_the_turns_time_nothing_is_known() -> None:
    assert validity("in 2019", COMPLETED, None) == validity(None, COMPLETED, AT) == UNKNOWN


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=9))])
def test_the_result_is_in_the_zone_of_the_turn(zone: timezone) -> None:
    found = validity("yesterday", COMPLETED, AT.replace(tzinfo=zone))
    assert found.invalid_at == datetime(2026, 11, 21, tzinfo=zone)


def test_one_instant_in_two_zones_is_two_days() -> None:
    tokyo = timezone(timedelta(hours=9))
    at = AT.replace(tzinfo=UTC)
    assert validity("today", ONGOING, at).valid_at == datetime(2026, 11, 22, tzinfo=UTC)
    assert validity("today", ONGOING, at.astimezone(tokyo)).valid_at == datetime(2026, 11, 23, tzinfo=tokyo)


@given(st.text(max_size=40), st.sampled_from(Temporal))
def test_no_text_raises_or_is_dated_on_the_wrong_side(when: str, temporal: Temporal) -> None:
    found = validity(when, temporal, AT)
    if temporal is FUTURE:
        assert found.valid_at is None or found.valid_at.date() >= AT.date()
    else:
        assert found.valid_at is None or found.valid_at <= AT


def test_most_expressions_of_generated_rows_are_read() -> None:
    """All but seasons, `soon`, `recently` and `a few days`."""
    every = map(json.loads, EXTRACTION_JSONL.read_text(encoding="utf-8").splitlines())
    rows = [row for row in every if row["origin"] == "generated"]
    told = {
        (relation["when"], Temporal(relation["temporal"]))
        for row in rows
        for relation in row["relationships"]
        if relation.get("when")
    }
    unknown = {when for when, temporal in told if validity(when, temporal, AT) == UNKNOWN}
    seasons = {f"next {season}" for season in ("spring", "summer", "autumn", "winter")}
    assert unknown <= seasons | {"soon", "recently", "in a few days", "a few days ago"}


def test_reading_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert validity("three weeks ago", COMPLETED, AT) == Validity(invalid_at=day("2026-11-01"))
