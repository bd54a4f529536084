"""What held on a day: as was known then, and as is known now, told apart."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer.cli import main
from observer.errors import ObserverError
from observer.memory.as_of import as_of
from observer.memory.facts import Fact
from observer.memory.store import Store
from observer.observation import Observation
from tests.memory.test_diff import DAY, OBSERVATIONS, said


def told(facts: list[Fact]) -> set[str]:
    return {f"{fact.predicate} {fact.object} {fact.state}" for fact in facts}


CASES: dict[str, tuple[list[Observation], int, set[str], set[str]]] = {
    "a home that was left later": (
        [said("User LIVES_IN Porto ongoing"), said("User LIVES_IN Lisbon ongoing", day=9)], 3,
        {"LIVES_IN Porto ongoing"}, {"LIVES_IN Porto superseded"},
    ),
    "the day of the change itself": (
        [said("User LIVES_IN Porto ongoing"), said("User LIVES_IN Lisbon ongoing", day=9)], 9,
        {"LIVES_IN Lisbon ongoing"}, {"LIVES_IN Lisbon ongoing"},
    ),
    "the day before anything was said": ([said("User LIKES tea ongoing")], -1, set(), set()),
    "what began before it was told": (
        [said("User WORKS_AT Bosch ongoing 2025..", day=9)], 3, set(), {"WORKS_AT Bosch ongoing"},
    ),
    "what was over before it was told": (
        [said("User WORKS_AT Bosch ongoing"), said("User WORKS_AT Bosch completed ..2026", day=9)], 3,
        {"WORKS_AT Bosch ongoing"}, set(),
    ),
    "a date that was told later": (
        [said("User WORKS_AT Bosch ongoing"), said("User WORKS_AT Bosch ongoing 2025..", day=9)], -1,
        set(), {"WORKS_AT Bosch ongoing"},
    ),
    "what will only begin": ([said("User WORKS_AT Bosch ongoing 2027..")], 3, set(), set()),
    "an end that is told ahead": (
        [said("User WORKS_AT Bosch ongoing"), said("User WORKS_AT Bosch completed ..2027", day=1)], 3,
        {"WORKS_AT Bosch completed"}, {"WORKS_AT Bosch completed"},
    ),
    "a past of which no time is known": ([said("User WORKS_AT Bosch completed")], 3, set(), set()),
    "a past with its times": (
        [said("User WORKS_AT Bosch completed 2025..2027", day=9)], 3, set(), {"WORKS_AT Bosch completed"},
    ),
    "a plan that came true later": (
        [said("User VISITS Kyoto future"), said("User VISITS Kyoto completed ..2026", day=9)], 3,
        {"VISITS Kyoto future"}, {"VISITS Kyoto came_true"},
    ),
    "a birth that was corrected": (
        [said("User BORN_IN Porto ongoing"), said("User BORN_IN Lisbon ongoing", day=9)], 3,
        {"BORN_IN Porto ongoing"}, {"BORN_IN Lisbon ongoing"},
    ),
    "an older conversation that was read later": (
        [said("User LIVES_IN Lisbon ongoing", day=5), said("User LIVES_IN Porto ongoing")], 3,
        {"LIVES_IN Porto ongoing"}, {"LIVES_IN Porto superseded"},
    ),
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.sqlite"


def filled(path: Path, observations: list[Observation]) -> Store:
    store = Store(path)
    for number, observation in enumerate(observations):
        store.apply(observation, str(number))
    return store


def day(number: int) -> date:
    return (DAY + timedelta(days=number)).date()


@pytest.mark.parametrize(("observations", "number", "then", "now"), CASES.values(), ids=CASES)
def test_what_held_as_was_known_then_and_as_is_known_now(
    path: Path, observations: list[Observation], number: int, then: set[str], now: set[str]
) -> None:
    with filled(path, observations) as store:
        held = as_of(store, day(number))
    assert (told(held.known_then), told(held.known_now)) == (then, now)


def test_a_date_that_was_filled_in_later_was_not_known_then(path: Path) -> None:
    with filled(
        path, [said("User WORKS_AT Bosch ongoing"), said("User WORKS_AT Bosch ongoing 2025..", day=9)]
    ) as store:
        held = as_of(store, day(3))
        assert [fact.valid_at for fact in held.known_then] == [None]
        assert [str(fact.valid_at)[:4] for fact in held.known_now] == ["2025"]


@settings(max_examples=60, deadline=None)
@given(st.lists(OBSERVATIONS, max_size=6), st.integers(-1, 5))
def test_what_was_known_then_is_what_a_memory_of_that_day_knows(observations: list[Observation], number: int) -> None:
    """In whatever order they were read."""
    in_order = [o for o in sorted(observations, key=lambda o: str(o.at)) if o.at and o.at.date() <= day(number)]
    with tempfile.TemporaryDirectory() as folder:
        with filled(Path(folder) / "all.sqlite", observations) as store:
            then = as_of(store, day(number)).known_then
        with filled(Path(folder) / "then.sqlite", in_order) as store:
            assert then == as_of(store, day(number)).known_now


def test_what_was_forgotten_was_known_before(path: Path) -> None:
    today = datetime.now(UTC).date()
    with filled(
        path, [said("User LIKES tea ongoing", "User LIKES jazz ongoing", "User BORN_IN Porto ongoing")]
    ) as store:
        for name in ("tea", "Porto"):  # a birth holds for ever, and is forgotten all the same
            (fact,) = store.known(name)
            store.forget(fact.id)
        yesterday, now = as_of(store, today - timedelta(days=1)), as_of(store, today)
    assert told(yesterday.known_then) == {"LIKES tea ongoing", "LIKES jazz ongoing", "BORN_IN Porto ongoing"}
    assert told(yesterday.known_now) == {"LIKES tea forgotten", "LIKES jazz ongoing", "BORN_IN Porto forgotten"}
    assert told(now.known_then) == told(now.known_now) == {"LIKES jazz ongoing"}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=str)
def test_what_is_deleted_brings_nothing_back(path: Path, order: tuple[int, ...]) -> None:
    homes = [said(f"User LIVES_IN {home} ongoing", day=number) for number, home in enumerate(["Oslo", "Rome", "Porto"])]
    with filled(path, [homes[number] for number in order]) as store:
        (rome,) = store.known("Rome", is_current=False)
        store.forget(rome.id, delete=True)
        held = [told(as_of(store, day(number)).known_then) for number in range(3)]
    assert held == [{"LIVES_IN Oslo ongoing"}, set(), {"LIVES_IN Porto ongoing"}]


def test_the_command_tells_the_two_apart(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observations = [
        said("User LIVES_IN Porto ongoing", "Ana LIKES tea ongoing"),
        said("User LIVES_IN Lisbon ongoing", day=9),
    ]
    filled(path, observations).close()
    assert main(["memory", "show", str(path), "--as-of", str(day(3)), "--about", "user"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(fact["known"], fact["object"], "ended_at" in fact) for fact in shown] == [
        ("then", "Porto", False),
        ("now", "Porto", True),
    ]


@pytest.mark.parametrize("given", [["--as-of", "March"], ["--as-of", "2026-01-04", "--all"]])
def test_what_is_no_day_is_wrong_usage(path: Path, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["memory", "show", str(path), *given])
    assert exit_.value.code == 2


def test_the_calendar_ends(path: Path) -> None:
    with filled(path, []) as store, pytest.raises(ObserverError, match="name an earlier one"):
        as_of(store, date.max)
