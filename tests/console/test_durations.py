"""A duration is told to its last unit, and no part of it reaches 60."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from observer.console.durations import format_duration

UNITS_S = {"s": 1, "min": 60, "h": 3600}


def read(text: str) -> tuple[list[tuple[int, str]], int]:
    """The parts of a duration, and their sum in seconds."""
    parts = [(int(number.replace(",", "")), unit) for number, unit in re.findall(r"([\d,]+) (s|min|h)\b", text)]
    assert re.sub(r"[\d,]+ (s|min|h)\b", "", text).strip() == ""
    return parts, sum(number * UNITS_S[unit] for number, unit in parts)


@given(st.floats(0, 1e9))
@example(1919.7)  # 31:60
@example(59.6)
@example(3599.5)
@example(7199.0)
def test_it_is_the_nearest_that_its_last_digit_can_say_and_no_part_reaches_60(seconds: float) -> None:
    parts, said_s = read(format_duration(seconds))
    assert abs(said_s - seconds) <= UNITS_S[parts[-1][1]] / 2
    assert all(number < 60 for number, unit in parts if unit != "h")
    assert all(number >= 1 for number, _ in parts[:-1])


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_longer_of_two_never_reads_as_the_shorter(one: float, other: float) -> None:
    assert read(format_duration(min(one, other)))[1] <= read(format_duration(max(one, other)))[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-3.0, "0 s"),
        (45, "45 s"),
        (1867, "31 min 07 s"),
        (3599.7, "1 h 00 min"),
        (7499, "2 h 05 min"),
        (3_600_000, "1,000 h 00 min"),
    ],
)
def test_how_it_reads(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
