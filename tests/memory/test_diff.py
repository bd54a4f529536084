"""What an observation changes in what is known: a table of cases, and properties that hold for all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from observer.errors import ObserverError
from observer.memory.diff import Timeline, changes, diff, remember
from observer.memory.facts import Fact, Operation, OperationKind, Reason
from observer.memory.rules import ONE_AT_A_TIME, topic_of, why_not_both
from observer.memory.said import Said
from observer.observation import Observation, ObservedEntity, ObservedRelationship
from observer.schema import SYMMETRIC_PREDICATES, EntityType, Predicate, Temporal

DAY = datetime(2026, 1, 1, 12, tzinfo=UTC)


def said(*triples: str, day: int = 0, ungrounded: Sequence[str] = ()) -> Observation:
    """An observation of `subject PREDICATE object state [valid_at..invalid_at]`, `day` days after DAY.

    Years stand for times; names have no blanks.
    """
    relationships = []
    for triple in triples:
        subject, predicate, obj, temporal, *times = triple.split()
        begin, _, end = times[0].partition("..") if times else ("", "", "")
        relationships.append(
            ObservedRelationship(
                subject=subject, predicate=Predicate(predicate), object=obj, temporal=Temporal(temporal),
                valid_at=year(begin), invalid_at=year(end),
            )
        )  # fmt: skip
    names = dict.fromkeys(name for r in relationships for name in (r.subject, r.object))
    entities = [
        ObservedEntity(name=name, type=EntityType.CONCEPT, is_grounded=name not in ungrounded) for name in names
    ]
    at = DAY + timedelta(days=day)
    return Observation(entities=entities, relationships=relationships, model="test", at=at)


def year(text: str) -> datetime | None:
    return datetime(int(text), 1, 1, tzinfo=UTC) if text else None


def known_after(*observations: Observation) -> list[Fact]:
    return remember(map(Said.of, observations))


def summary(operations: Sequence[Operation]) -> set[str]:
    return {f"{o.kind} {o.fact.predicate} {o.fact.object} {o.reason}" for o in operations}


CASES = {
    "a first fact": ([], ["User LIKES tea ongoing"], {"ADD LIKES tea new"}),
    "the same again": (["User LIKES tea ongoing"], ["user LIKES Tea ongoing"], {"NOOP LIKES tea known"}),
    "a change of job": (
        ["User WORKS_AT Siemens ongoing"],
        ["User WORKS_AT Siemens completed", "User WORKS_AT Bosch ongoing"],
        {"INVALIDATE WORKS_AT Siemens stated", "ADD WORKS_AT Bosch new"},
    ),
    "a second job beside the first": (
        ["User WORKS_AT Siemens ongoing"], ["User WORKS_AT Bosch ongoing"], {"ADD WORKS_AT Bosch new"},
    ),
    "a move of which only the new home is told": (
        ["User LIVES_IN Porto ongoing"], ["User LIVES_IN Lisbon ongoing"],
        {"INVALIDATE LIVES_IN Porto superseded", "ADD LIVES_IN Lisbon new"},
    ),
    "a move of another person": (
        ["User LIVES_IN Porto ongoing"], ["Ana LIVES_IN Lisbon ongoing"], {"ADD LIVES_IN Lisbon new"},
    ),
    "a town and its country in one breath": (
        [], ["User LIVES_IN Lisbon ongoing", "User LIVES_IN Portugal ongoing"],
        {"ADD LIVES_IN Lisbon new", "ADD LIVES_IN Portugal new"},
    ),
    "one of two homes that were told together": (
        ["User LIVES_IN Lisbon ongoing;User LIVES_IN Portugal ongoing"], ["User LIVES_IN Lisbon ongoing"],
        {"NOOP LIVES_IN Lisbon known"},
    ),
    "a plan leaves the present alone": (
        ["User LIVES_IN Porto ongoing"], ["User LIVES_IN Lisbon future"], {"ADD LIVES_IN Lisbon new"},
    ),
    "a plan that comes true": (
        ["User LIVES_IN Porto ongoing", "User LIVES_IN Lisbon future"], ["User LIVES_IN Lisbon ongoing"],
        {"INVALIDATE LIVES_IN Lisbon came_true", "INVALIDATE LIVES_IN Porto superseded", "ADD LIVES_IN Lisbon new"},
    ),
    "a plan in place of a plan": (
        ["User LIVES_IN Lisbon future"], ["User LIVES_IN Porto future"],
        {"INVALIDATE LIVES_IN Lisbon superseded", "ADD LIVES_IN Porto new"},
    ),
    "a plan for what already holds": (
        ["User DOES yoga ongoing"], ["User DOES yoga future"], {"NOOP DOES yoga known"},
    ),
    "a trip that was a plan": (
        ["User VISITS Kyoto future"], ["User VISITS Kyoto completed ..2026"],
        {"INVALIDATE VISITS Kyoto came_true", "ADD VISITS Kyoto new"},
    ),
    "a plan that is over, nobody says how": (
        ["User VISITS Kyoto future"], ["User VISITS Kyoto completed"], {"INVALIDATE VISITS Kyoto closed"},
    ),
    "a plan that is said to be over once more": (
        ["User VISITS Kyoto future", "User VISITS Kyoto completed"], ["User VISITS Kyoto completed"],
        {"NOOP VISITS Kyoto known"},
    ),
    "a plan that came true, left and taken up in one breath": (
        ["User WORKS_AT Bosch future"], ["User WORKS_AT Bosch completed", "User WORKS_AT Bosch ongoing"],
        {"INVALIDATE WORKS_AT Bosch came_true", "ADD WORKS_AT Bosch new"},
    ),
    "a past before a plan without a date": (
        ["User LIVES_IN Kyoto future"], ["User LIVES_IN Kyoto completed ..2019"], {"ADD LIVES_IN Kyoto new"},
    ),
    "a plan that is called off": (
        ["User LIVES_IN Porto ongoing", "User LIVES_IN Kyoto future 2027.."], ["User LIVES_IN Kyoto completed"],
        {"INVALIDATE LIVES_IN Kyoto called_off"},
    ),
    "a plan that is called off once more": (
        ["User VISITS Kyoto future 2027..", "User VISITS Kyoto completed"], ["User VISITS Kyoto completed"],
        {"NOOP VISITS Kyoto known"},
    ),
    "a plan made again after it was called off": (
        ["User VISITS Kyoto future 2027..", "User VISITS Kyoto completed"], ["User VISITS Kyoto future 2028.."],
        {"ADD VISITS Kyoto new"},
    ),
    "a plan whose time has come": (
        ["User VISITS Kyoto future 2025.."], ["User VISITS Kyoto completed"],
        {"INVALIDATE VISITS Kyoto came_true", "ADD VISITS Kyoto new"},
    ),
    "a trip of long ago beside a plan": (
        ["User VISITS Kyoto future 2027.."], ["User VISITS Kyoto completed ..2019"], {"ADD VISITS Kyoto new"},
    ),
    "what was planned is begun before its time": (
        ["User LIVES_IN Kyoto future 2027.."], ["User LIVES_IN Kyoto ongoing"],
        {"INVALIDATE LIVES_IN Kyoto came_true", "ADD LIVES_IN Kyoto new"},
    ),
    "a plan that was put off, called off after its first time": (
        ["User LIVES_IN Kyoto future 2025..", "User LIVES_IN Kyoto future 2027.."], ["User LIVES_IN Kyoto completed"],
        {"INVALIDATE LIVES_IN Kyoto called_off"},
    ),
    "a past never known": ([], ["User WORKS_AT Siemens completed"], {"ADD WORKS_AT Siemens new"}),
    "a past told twice": (
        ["User WORKS_AT Siemens completed"], ["User WORKS_AT Siemens completed"], {"NOOP WORKS_AT Siemens known"},
    ),
    "two trips at two times": (
        ["User VISITS Kyoto completed ..2019"], ["User VISITS Kyoto completed ..2022"], {"ADD VISITS Kyoto new"},
    ),
    "one trip, dated later": (
        ["User VISITS Kyoto completed"], ["User VISITS Kyoto completed ..2022"], {"NOOP VISITS Kyoto known"},
    ),
    "back at an old job": (
        ["User WORKS_AT Siemens completed"], ["User WORKS_AT Siemens ongoing"], {"ADD WORKS_AT Siemens new"},
    ),
    "left and back in one breath": (
        ["User WORKS_AT Siemens ongoing"],
        ["User WORKS_AT Siemens completed ..2019", "User WORKS_AT Siemens ongoing"],
        {"ADD WORKS_AT Siemens new", "NOOP WORKS_AT Siemens known"},
    ),
    "a taste that turned": (
        ["User DISLIKES opera ongoing"], ["User LIKES opera ongoing"],
        {"INVALIDATE DISLIKES opera contradicted", "ADD LIKES opera new"},
    ),
    "a taste for something else": (
        ["User DISLIKES opera ongoing"], ["User LIKES jazz ongoing"], {"ADD LIKES jazz new"},
    ),
    "a liking that turned into a preference": (
        ["User LIKES tea ongoing"], ["User PREFERS tea ongoing"], {"ADD PREFERS tea new"},
    ),
    "an inverse pair": (
        ["User CHILD_OF Ana ongoing"], ["Ana PARENT_OF User ongoing"], {"NOOP PARENT_OF User known"},
    ),
    "a symmetric pair": (["Ana MARRIED_TO User ongoing"], ["User MARRIED_TO Ana ongoing"],
                         {"NOOP MARRIED_TO Ana known"}),
    "another spouse, of the one who stands second": (
        ["Ana MARRIED_TO Ben ongoing"], ["Ben MARRIED_TO Cleo ongoing"],
        {"INVALIDATE MARRIED_TO Ben superseded", "ADD MARRIED_TO Cleo new"},
    ),
    "a wedding of the engaged": (
        ["User ENGAGED_TO Ana ongoing"], ["User MARRIED_TO Ana ongoing"],
        {"INVALIDATE ENGAGED_TO Ana superseded", "ADD MARRIED_TO Ana new"},
    ),
    "a wedding with another": (
        ["User DATING Ana ongoing"], ["User MARRIED_TO Ben ongoing"], {"ADD MARRIED_TO Ben new"},
    ),
    "a birthday": (
        ["User HAS_AGE 30 ongoing"], ["User HAS_AGE 31 ongoing"],
        {"INVALIDATE HAS_AGE 30 superseded", "ADD HAS_AGE 31 new"},
    ),
    "born, in the past tense": (["User BORN_IN Porto ongoing"], ["User BORN_IN Porto completed"],
                                {"NOOP BORN_IN Porto known"}),
}  # fmt: skip


@pytest.mark.parametrize(("before", "now", "expected"), CASES.values(), ids=CASES)
def test_cases(before: list[str], now: list[str], expected: set[str]) -> None:
    observations = [said(*one.split(";"), day=day) for day, one in enumerate(before)]
    assert summary(diff(said(*now, day=9), known_after(*observations))) == expected


def test_an_end_has_the_stated_time_and_the_time_of_the_conversation() -> None:
    (fact,) = known_after(
        said("User WORKS_AT Siemens ongoing 2019.."), said("User WORKS_AT Siemens completed ..2025", day=3)
    )
    assert (fact.valid_at, fact.invalid_at) == (year("2019"), year("2025"))
    assert (fact.first_seen, fact.last_seen, fact.ended_at) == (DAY, *[DAY + timedelta(days=3)] * 2)
    assert (fact.state, fact.is_current, fact.ended_by) == ("completed", False, Reason.STATED)


def test_what_takes_a_place_ends_the_other_when_it_began() -> None:
    known = known_after(said("User LIVES_IN Porto ongoing"), said("User LIVES_IN Lisbon ongoing 2025..", day=3))
    assert {(fact.object, fact.valid_at, fact.invalid_at) for fact in known} == {
        ("Porto", None, year("2025")),
        ("Lisbon", year("2025"), None),
    }


def test_an_end_before_the_beginning_stays_unknown() -> None:
    known = known_after(
        said("User WORKS_AT Siemens ongoing 2019.."), said("User WORKS_AT Siemens completed ..2012", day=1)
    )
    assert (known[0].invalid_at, known[0].is_current) == (None, False)


def test_what_was_unknown_is_filled_in_and_what_was_known_stays() -> None:
    known = known_after(
        said("User WORKS_AT Siemens ongoing"),
        said("User WORKS_AT Siemens ongoing 2019..", day=1),
        said("User WORKS_AT Siemens ongoing 2012..", day=2),
    )
    assert known[0].valid_at == year("2019")
    assert known[0].last_seen == DAY + timedelta(days=2)


def test_an_older_conversation_that_is_read_later_counts_where_it_was_said() -> None:
    later, older = said("User LIVES_IN Lisbon ongoing", day=5), said("User LIVES_IN Porto ongoing")
    known = known_after(later, older)
    assert summary(changes(known_after(later), known)) == {"ADD LIVES_IN Porto new"}
    assert {(fact.object, fact.is_current) for fact in known} == {("Lisbon", True), ("Porto", False)}
    porto = next(fact for fact in known if fact.object == "Porto")
    assert (porto.ended_by, porto.ended_at) == (Reason.SUPERSEDED, DAY + timedelta(days=5))
    with pytest.raises(ObserverError, match="'User lives in Lisbon' is known from one of 2026-01-06"):
        diff(older, known_after(later))
    assert summary(diff(said("User LIKES tea ongoing"), known)) == {"ADD LIKES tea new"}  # of another topic


def test_a_fact_that_turns_out_to_be_another_is_merged_with_it() -> None:
    """Porto and Lisbon were told one after the other; then it is read that in between they were one home."""
    homes = {0: "Porto", 2: "Lisbon", 4: "Porto"}
    apart = [said(f"User LIVES_IN {home} ongoing", day=day) for day, home in homes.items()]
    both = said("User LIVES_IN Porto ongoing", "User LIVES_IN Lisbon ongoing", day=1)
    before, after = known_after(*apart), known_after(*apart, both)
    assert [fact.object for fact in after if fact.is_current] == ["Porto", "Lisbon"]
    assert summary(changes(before, after)) == {
        "INVALIDATE LIVES_IN Porto merged", "ADD LIVES_IN Porto new", "ADD LIVES_IN Lisbon new",
    }  # fmt: skip


def test_a_plan_for_what_holds_dates_nothing() -> None:
    (fact,) = known_after(said("User DOES yoga ongoing"), said("User DOES yoga future 2027..", day=1))
    assert (fact.temporal, fact.valid_at, fact.last_seen) == (Temporal.ONGOING, None, DAY + timedelta(days=1))


def test_a_plan_that_is_read_after_its_end_was_told_again_is_over() -> None:
    over = [said("User VISITS Kyoto completed", day=day) for day in (1, 3)]
    known = known_after(*over, said("User VISITS Kyoto future", day=2))
    assert [(fact.state, fact.ended_at) for fact in known if fact.temporal is Temporal.FUTURE] == [
        ("closed", DAY + timedelta(days=3))
    ]


def test_a_plan_that_gave_way_to_another_was_not_told_to_be_over() -> None:
    plans = [said("User LIVES_IN Rome future"), said("User LIVES_IN Oslo future", day=5)]
    known = known_after(*plans, said("User LIVES_IN Rome ongoing", day=2))
    assert {fact.object for fact in known if fact.is_current} == {"Rome", "Oslo"}


def test_a_name_that_stands_nowhere_in_the_text_is_not_remembered() -> None:
    observation = said("User LIVES_IN Atlantis ongoing", ungrounded=["Atlantis"])
    assert known_after(observation) == []
    assert summary(diff(observation, [])) == {"NOOP LIVES_IN Atlantis ungrounded"}


def test_facts_keep_names_as_they_were_first_written_in_canonical_direction() -> None:
    (fact,) = known_after(said("User CHILD_OF Ana ongoing"))
    assert (fact.subject, fact.predicate, fact.object) == ("Ana", "PARENT_OF", "User")


def test_a_time_without_a_zone_counts_as_utc() -> None:
    observation = said("User LIKES tea ongoing").model_copy(update={"at": datetime(2026, 1, 1, 12)})
    assert diff(observation, [])[0].fact.first_seen == DAY


def test_an_end_is_told_of_what_ended_then_not_of_an_older_past() -> None:
    """Told out of order: the past of day 0 became known after the present of day 1."""
    told = [
        said("User WORKS_AT Ana ongoing", day=1), said("User WORKS_AT Ana completed"),
        said("User WORKS_AT Ana completed ..2019", day=1),
    ]  # fmt: skip
    known = known_after(*told)
    assert {(fact.ended_at, fact.invalid_at) for fact in known} == {
        (DAY, None), (DAY + timedelta(days=1), year("2019")),
    }  # fmt: skip
    assert known_after(*told, said("User WORKS_AT Ana completed", day=1)) == known


AGAIN = {
    "a past without a date, then one with": (
        ["User VISITS Kyoto completed"], ["User VISITS Kyoto completed 2021..2021", "User VISITS Kyoto completed"],
    ),
    "a visit of another time than the one that goes on": (
        ["User VISITS Kyoto ongoing 2024.."], ["User VISITS Kyoto completed 2021..2021"],
    ),
    "two times of one job": (
        ["User WORKS_AT Bosch completed 2019..2024"],
        ["User WORKS_AT Bosch completed", "User WORKS_AT Bosch completed 2019..2019"],
    ),
    "a plan that was made after the visit began": (
        ["User VISITS Kyoto future"], ["User VISITS Kyoto completed 2019..", "User VISITS Kyoto completed ..2021"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "now"), AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("day", [0, 1, 2])
def test_what_was_told_twice_in_one_breath_is_told_once(before: list[str], now: list[str], day: int) -> None:
    told = [said(*before, day=1), said(*now, day=day)]
    assert known_after(*told, told[-1]) == known_after(*told)


NAMES = st.sampled_from(["User", "Ana", "ben", "Lisbon", "Porto"])
PREDICATES = st.sampled_from(
    "LIVES_IN WORKS_AT LIKES DISLIKES PREFERS DATING ENGAGED_TO MARRIED_TO CHILD_OF PARENT_OF VISITS BORN_IN".split()
)
YEARS = st.sampled_from(["", "2019", "2021", "2024"])
TRIPLES = st.builds(
    lambda s, p, o, t, begin, end: f"{s} {p} {o} {t} {begin}..{end}",
    NAMES, PREDICATES, NAMES, st.sampled_from(list(Temporal)), YEARS, YEARS,
)  # fmt: skip
OBSERVATIONS = st.builds(
    lambda triples, day: said(*triples, day=day), st.lists(TRIPLES, max_size=4), st.integers(0, 4)
)  # fmt: skip


PASTS = st.builds(
    lambda triples, day: said(*triples, day=day),
    st.lists(
        st.builds(
            lambda predicate, temporal, begin, end: f"User {predicate} Kyoto {temporal} {begin}..{end}",
            st.sampled_from(["VISITS", "WORKS_AT"]), st.sampled_from(list(Temporal)), YEARS, YEARS,
        ), max_size=3,
    ), st.integers(0, 3),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(OBSERVATIONS, max_size=5) | st.lists(PASTS, max_size=4))
@example([
    said("User WORKS_AT Kyoto ongoing 2019..", "User WORKS_AT Kyoto completed ..", day=1),
    said("User WORKS_AT Kyoto completed ..2019", day=1),
])  # fmt: skip
def test_the_same_observation_again_changes_nothing(observations: list[Observation]) -> None:
    for n_read in range(1, len(observations) + 1):
        read = observations[:n_read]
        assert known_after(*read, read[-1]) == known_after(*read)


@settings(max_examples=100, deadline=None)
@given(st.lists(OBSERVATIONS, max_size=6))
def test_nothing_is_deleted_taken_back_or_begun_anew(observations: list[Observation]) -> None:
    """Where it is read in the order in which it was said."""
    timeline = Timeline()
    for told in sorted(map(Said.of, observations), key=lambda told: told.seen_at):
        before = {fact.id: fact for fact in timeline.facts}
        operations = timeline.tell(told)
        after = {fact.id: fact for fact in timeline.facts}
        added = [o.fact.id for o in operations if o.kind is OperationKind.ADD]
        assert set(after) == {*before, *added} and not before.keys() & set(added)
        for name, fact in before.items():
            now = after[name]
            assert (now.key, now.temporal, now.first_seen) == (fact.key, fact.temporal, fact.first_seen)
            assert fact.is_current or (now.ended_at, now.ended_by) == (fact.ended_at, fact.ended_by)
            assert fact.valid_at in (None, now.valid_at) or fact.temporal is Temporal.FUTURE  # which may be put off
            assert fact.when in (None, now.when)
            assert fact.last_seen <= now.last_seen


@settings(max_examples=60, deadline=None)
@given(st.lists(OBSERVATIONS, max_size=6))
def test_a_triple_has_one_current_fact_at_most(observations: list[Observation]) -> None:
    current = [fact.key for fact in known_after(*observations) if fact.is_current]
    assert len(current) == len(set(current))


def test_every_symmetric_predicate_that_is_one_at_a_time_is_so_for_both() -> None:
    for predicate in SYMMETRIC_PREDICATES & ONE_AT_A_TIME.keys():
        known = known_after(said(f"Ana {predicate} Ben ongoing"))
        operations = diff(said(f"Cleo {predicate} Ben ongoing", day=1), known)
        assert [operation.kind for operation in operations] == [OperationKind.INVALIDATE, OperationKind.ADD]


def test_what_ends_another_is_of_its_topic() -> None:
    pairs = list(permutations(["User", "Ana", "Ben"], 2))
    told = [said(f"{one} {predicate} {other} ongoing") for predicate in Predicate for one, other in pairs]
    facts = [fact for observation in told for fact in known_after(observation)]
    for new, old in permutations(facts, 2):
        assert not why_not_both(new, old) or topic_of(new.key) == topic_of(old.key)
    assert len({topic_of(fact.key) for fact in facts}) > len(Predicate)
