"""When a message was written: every common form is read, and a number that is no time is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.errors import ObserverError
from observer.observation import grade_of, read_time
from observer.schema import Label
from observer.turns.accept import to_exchange

MOMENT = datetime(2026, 11, 25, 10, 15, 30, tzinfo=UTC)
CET = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2026-11-25", datetime(2026, 11, 25)),
        ("20261125", datetime(2026, 11, 25)),
        ("2026-W48-3", datetime(2026, 11, 25)),
        ("2026-329", datetime(2026, 11, 25)),
        ("2026-11-25T10", datetime(2026, 11, 25, 10)),
        ("2026-11-25T10:15", datetime(2026, 11, 25, 10, 15)),
        ("20261125T101530Z", MOMENT),
        ("20261125101530", MOMENT.replace(tzinfo=None)),
        ("2026-11-25T10:15:30Z", MOMENT),
        (" 2026-11-25t10:15:30z ", MOMENT),
        ("2026-11-25T10:15:30.123456789Z", MOMENT.replace(microsecond=123456)),
        ("2026-11-25 10:15:30 UTC", MOMENT),
        ("2026-11-25 11:15:30 +0100", MOMENT.astimezone(CET)),
        ("2026-11-25 11:15:30+01", MOMENT.astimezone(CET)),
        (1795601730, MOMENT),
        ("1795601730", MOMENT),
        (1795601730.5, MOMENT.replace(microsecond=500_000)),
        ("1795601730.500000", MOMENT.replace(microsecond=500_000)),
        (1795601730500, MOMENT.replace(microsecond=500_000)),
        (1795601730500000, MOMENT.replace(microsecond=500_000)),
        (MOMENT, MOMENT),
        ("", None),
        (None, None),
    ],
)
def test_every_common_form_of_a_time_is_read(given: Any, expected: datetime | None) -> None:
    assert read_time(given) == expected


@pytest.mark.parametrize(
    "given",
    ["2026", "2026-11", "202611", "2026-13-01", "2026-02-30", "2026-366", "2026-11-25T25:00", "5/6/2026", "25.11.2026",
     "yesterday", "12:30", 2026, 20261125, 0, -1, 5.5, 17000000001, 10**40, True, float("inf"), float("nan"), [], {}],
)  # fmt: skip
def test_what_is_no_time_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="a time such as 2026-11-22T18:30Z"):
        read_time(given)
    with pytest.raises(ObserverError, match="at: a time such as"):
        to_exchange("hi", at=given)


@given(
    st.datetimes(datetime(2002, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(
        lambda t: t.replace(microsecond=0)
    )
)
def test_a_moment_is_the_same_in_every_form(moment: datetime) -> None:
    seconds = int(moment.timestamp())
    forms = [moment.isoformat(), moment.strftime("%Y%m%dT%H%M%SZ"), str(moment), seconds, str(seconds), seconds * 1000]
    assert {read_time(form) for form in forms} == {moment}


@given(st.integers(-(10**9) + 1, 10**9 - 1) | st.text(max_size=12))
def test_a_number_of_less_than_ten_digits_is_no_time_since_1970(given: int | str) -> None:
    try:
        found = read_time(given)
    except ValueError:
        return
    assert isinstance(given, str)
    assert found is None or len(given.strip()) >= 8


@pytest.mark.parametrize(
    ("shares", "keep_above", "label"),
    [
        ((0.5, 0.2, 0.3), None, Label.DISCARD),
        ((0.5, 0.2, 0.3), 0.5, Label.DISCARD),
        ((0.5, 0.2, 0.3), 0.4, Label.IMPORTANT),
        ((0.4, 0.35, 0.25), 0.5, Label.STORE),
        ((0.4, 0.3, 0.3), 0.7, Label.DISCARD),
        ((0.01, 0.9, 0.09), 0.99, Label.DISCARD),
    ],
)
def test_a_turn_is_kept_when_its_worth_is_likelier_than_asked(
    shares: tuple[float, ...], keep_above: float | None, label: Label
) -> None:
    assert grade_of(dict(zip(Label, shares, strict=True)), keep_above).label is label
