"""Time expressions become the begin or the end of a relationship, or stay unknown."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime, timedelta, timezone

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
        ("on the 19th", "2026-11-19"),
        ("3 May", "2026-05-03"),
        ("seit märz", "2026-03-01"),
        ("seit zwei Jahren", "2024-11-22"),
        ("em fevereiro", "2026-02-01"),
        ("il y a deux ans", "2024-11-22"),
        ("去年", "2025-01-01"),
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
        ("the 25th", "2026-11-25", None),
        ("from the 3rd of May", "2027-05-03", None),
        ("until Sunday", None, "2026-11-29"),
        ("from Monday to Friday", "2026-11-23", "2026-11-27"),
    ],
)
def test_what_is_future_will_begin_then(when: str, begin: str | None, end: str | None) -> None:
    assert validity(when, FUTURE, AT) == Validity(day(begin) if begin else None, day(end) if end else None)


def test_what_is_ongoing_until_a_day_to_come_ends_then() -> None:
    assert validity("till Friday", ONGOING, AT) == Validity(invalid_at=day("2026-11-27"))


@pytest.mark.parametrize("temporal", Temporal)
@pytest.mark.parametrize(
    "when",
    "soon|recently|lately|now|зараз|seit kurzem|next summer|in the spring|at easter|before xmas|new year|on wednesdays"
    "|every other friday|in a few days|a few days ago|since we were 12|since he saw that documentary|next payday"
    "|the 90s|12|3 years|03/04/2020||   ".split("|"),
)
def test_what_is_vague_stays_unknown(when: str, temporal: Temporal) -> None:
    assert validity(when, temporal, AT) == UNKNOWN


@pytest.mark.parametrize(("when", "temporal"), [("next week", ONGOING), ("tomorrow", COMPLETED), ("yesterday", FUTURE)])
def test_a_moment_on_the_wrong_side_of_the_turn_stays_unknown(when: str, temporal: Temporal) -> None:
    assert validity(when, temporal, AT) == UNKNOWN


def test_last_november_told_in_november_may_be_either() -> None:
    assert validity("last November", COMPLETED, AT) == UNKNOWN


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


def test_most_expressions_of_our_rows_are_read() -> None:
    """All but seasons, `soon`, `recently` and `a few days`."""
    rows = map(json.loads, EXTRACTION_JSONL.read_text(encoding="utf-8").splitlines())
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
