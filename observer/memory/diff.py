"""What observations come to: facts, as the fold of what was said in order of time. Pure: nothing is read or written.

Statements of one observation never end one another. Those of one moment count in the order in which they are given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from observer.errors import ObserverError
from observer.memory.facts import Fact, Key, Operation, OperationKind, Reason, fact_id, fact_of, in_order
from observer.memory.rules import RECURRING, TIMELESS, topic_of, why_not_both
from observer.memory.said import Said
from observer.observation import Observation
from observer.schema import Temporal
from observer.turns.pronouns import is_nobodys_name


def remember(told: Iterable[Said]) -> list[Fact]:
    """What is known after all of it, by when it was first said: the same in whatever order it is given."""
    timeline = Timeline()
    for said in sorted(told, key=lambda said: said.seen_at):
        timeline.tell(said)
    return timeline.facts


def diff(observation: Observation, known: Iterable[Fact], seen_at: datetime | None = None) -> list[Operation]:
    """What an observation changes in what is known: the operations, in an order in which they can be applied. Applying
    them and asking again gives NOOPs only.

    `known` holds ended facts too. `seen_at`, when the exchange was said, is by default the observation's own time,
    else now. Raises ObserverError for one that was said before what is known of the same.
    """
    timeline, said = Timeline(known), Said.of(observation, seen_at)
    topics = said.topics
    if late := [fact for fact in timeline.facts if fact.told_at > said.seen_at and topic_of(fact.key) in topics]:
        raise ObserverError(
            f"an exchange of {said.seen_at}: {late[0].as_text()!r} is known from one of {late[0].told_at}; give `diff` "
            "what was said in order of time, or give `remember` all of it"
        )
    return timeline.tell(said)


def changes(before: Iterable[Fact], after: Iterable[Fact]) -> list[Operation]:
    """The operations between two states of a memory."""
    was, now = ({fact.id: fact for fact in facts} for facts in (before, after))
    merged = [
        fact.model_copy(update={"ended_at": fact.last_seen, "ended_by": Reason.MERGED})
        for fact in was.values()
        if fact.is_current and fact.id not in now
    ]
    changed = [fact for fact in [*merged, *now.values()] if fact != was.get(fact.id)]
    return [_operation(was.get(fact.id), fact) for fact in changed]


class Timeline:
    """Facts, and what each observation changes in them: to be told in order of time.

    A triple has at most one current fact, ongoing or planned. `facts` are those known at the beginning.
    """

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self._facts: dict[Key, dict[str, Fact]] = defaultdict(dict)
        self._current: dict[str, dict[Key, Fact]] = defaultdict(dict)
        self._stated: set[tuple[Key, Temporal]] = set()
        self._changed: dict[str, tuple[Fact | None, Fact]] = {}
        for fact in facts:
            self._put(fact)

    @property
    def facts(self) -> list[Fact]:
        """In the order in which they became known."""
        return in_order(fact for facts in self._facts.values() for fact in facts.values())

    def tell(self, said: Said) -> list[Operation]:
        """What it changes, and what it says again."""
        grounded, ungrounded = _facts_of(said)
        self._changed = {}
        self._stated = {(fact.key, fact.temporal) for fact in grounded}
        for end in said.ends:
            current = self._current_of(end.key)
            if current and (end.reason is Reason.FORGOTTEN or current.temporal is end.temporal):
                self._put(_ended(current, said.seen_at, end.reason, end.invalid_at))
        steps = {Temporal.COMPLETED: self._completed, Temporal.ONGOING: self._ongoing, Temporal.FUTURE: self._future}
        for state, step in steps.items():
            for fact in grounded:
                if fact.temporal is state:
                    step(fact)
        left_out = [Operation(kind=OperationKind.NOOP, reason=Reason.UNGROUNDED, fact=fact) for fact in ungrounded]
        return [_operation(was, now) for was, now in self._changed.values()] + left_out

    def _completed(self, fact: Fact) -> None:
        """It is over: end what is current and see that again; else see again what was over, or add it as past."""
        current = self._current_of(fact.key)
        reason = None
        if current and {(fact.key, Temporal.ONGOING), (fact.key, current.temporal)}.isdisjoint(self._stated):
            reason = _why_over(current, fact)  # else "I left, and now I am there again"
        past = self._over_already(fact)
        if current and reason:
            ended = self._put(_ended(current, fact.first_seen, reason, fact.invalid_at))
            past = None if reason is Reason.CAME_TRUE else ended
        if past:
            self._put(_with_more(past, fact))
        else:
            self._add(_ended(fact, fact.first_seen, Reason.STATED, fact.invalid_at))

    def _over_already(self, fact: Fact) -> Fact | None:
        """Of what it can tell again, the one to which it adds nothing, so that the same statement finds it again; then
        the one that ended at this moment, the one of the same times, the last to end."""

        def closeness(old: Fact) -> tuple[bool, bool, int, datetime, datetime, str]:
            adds_nothing = _with_more(old, fact) == old
            n_same_times = (old.valid_at == fact.valid_at) + (old.invalid_at == fact.invalid_at)
            ended_at = old.ended_at or fact.first_seen
            return adds_nothing, ended_at == fact.first_seen, n_same_times, ended_at, old.first_seen, old.id

        known = self._facts[fact.key].values()
        over = [old for old in known if not old.is_current and old.ended_by is not Reason.CAME_TRUE]
        same = [old for old in over if _why_over(old, fact) not in (None, Reason.CAME_TRUE)]
        return max(same, key=closeness, default=None)

    def _ongoing(self, fact: Fact) -> None:
        current = self._current_of(fact.key)
        if current and current.temporal is Temporal.ONGOING:
            self._put(_with_more(current, fact))
            return
        if current:
            self._put(_ended(current, fact.first_seen, Reason.CAME_TRUE, None))
        self._add_in_place_of_rivals(fact)

    def _future(self, fact: Fact) -> None:
        current = self._current_of(fact.key)
        if current is None:
            self._add_in_place_of_rivals(fact)
            return
        if current.temporal is Temporal.FUTURE and fact.valid_at and current.last_seen < fact.first_seen:
            put_off = {name: getattr(fact, name) for name in ("valid_at", "invalid_at", "when")}
            current = current.model_copy(update=put_off)
        self._put(_with_more(current, fact))

    def _add_in_place_of_rivals(self, fact: Fact) -> None:
        """End what cannot hold beside it any more."""
        for old in list(self._current[topic_of(fact.key)].values()):
            is_rival = old.temporal is fact.temporal and (old.key, old.temporal) not in self._stated
            if is_rival and (reason := why_not_both(fact, old)):
                self._put(_ended(old, fact.first_seen, reason, fact.valid_at))
        self._add(fact)

    def _add(self, fact: Fact) -> None:
        self._put(fact.model_copy(update={"id": fact_id(fact.key, len(self._facts[fact.key]))}))

    def _put(self, fact: Fact) -> Fact:
        key, facts = fact.key, self._facts[fact.key]
        was, _ = self._changed.get(fact.id, (facts.get(fact.id), fact))
        self._changed[fact.id] = was, fact
        facts[fact.id] = fact
        current = self._current[topic_of(key)]
        if fact.is_current:
            current[key] = fact
        elif key in current and current[key].id == fact.id:
            del current[key]
        return fact

    def _current_of(self, key: Key) -> Fact | None:
        return self._current[topic_of(key)].get(key)


def _operation(was: Fact | None, now: Fact) -> Operation:
    """`was` is the fact before, None where there was none."""
    if was is None or (now.is_current and (not was.is_current or was.temporal is not now.temporal)):
        return Operation(kind=OperationKind.ADD, reason=Reason.NEW, fact=now)
    if was.is_current and now.ended_by:
        return Operation(kind=OperationKind.INVALIDATE, reason=now.ended_by, fact=now)
    return Operation(kind=OperationKind.NOOP, reason=Reason.KNOWN, fact=now)


def _facts_of(said: Said) -> tuple[list[Fact], list[Fact]]:
    """What it states, and what it states of names that are none, or stand nowhere in the text."""
    entities = said.observation.entities
    types = {entity.name: entity.type for entity in entities}
    invented = {entity.name for entity in entities if not entity.is_grounded}
    grounded, ungrounded = [], []
    for relationship in said.observation.relationships:
        fact = fact_of(relationship, types, said.seen_at)
        if not _is_in_order(fact.valid_at, fact.invalid_at):
            fact = fact.model_copy(update={"invalid_at": None})
        if fact.predicate in TIMELESS:
            fact = fact.model_copy(update={"temporal": Temporal.ONGOING, "invalid_at": None})
        ends = {fact.subject, fact.object}
        is_invented = bool(invented & ends) or any(map(is_nobodys_name, ends - types.keys()))
        (ungrounded if is_invented else grounded).append(fact)
    return _past_told_once(grounded), ungrounded


def _past_told_once(facts: Iterable[Fact]) -> list[Fact]:
    """Statements of the same past in one: each that is left speaks of a time of its own."""
    told: list[Fact] = []
    for fact in facts:
        same = [number for number, old in enumerate(told) if _is_same_past(old, fact)]
        if same:
            told[same[0]] = _with_more(told[same[0]], fact)
        else:
            told.append(fact)
    return told


def _is_same_past(old: Fact, fact: Fact) -> bool:
    are_past = old.temporal is fact.temporal is Temporal.COMPLETED
    return are_past and old.key == fact.key and _is_same_time(old, fact)


def _why_over(known: Fact, fact: Fact) -> Reason | None:
    """Why what is known is over where `fact` says that it is; None where `fact` is of another time.

    A plan is over without having come true where its time has not come. A past that lies before the plan was told is
    not what was planned.
    """
    if known.temporal is not Temporal.FUTURE:
        return Reason.STATED if _is_same_time(known, fact) else None
    is_to_come = known.valid_at is not None and known.valid_at > fact.first_seen
    if happened_at := fact.invalid_at or fact.valid_at:
        is_other = is_to_come or happened_at.date() < known.first_seen.date()
        return None if is_other else Reason.CAME_TRUE
    if known.valid_at is None:
        return Reason.CLOSED
    return Reason.CALLED_OFF if is_to_come else Reason.CAME_TRUE


def _ended(fact: Fact, ended_at: datetime, reason: Reason, invalid_at: datetime | None) -> Fact:
    """The fact as over. An end that lies before the beginning is no end: it stays unknown."""
    ends = [end for end in (invalid_at, fact.invalid_at) if end and _is_in_order(fact.valid_at, end)]
    update = {"ended_at": ended_at, "ended_by": reason, "invalid_at": ends[0] if ends else None}
    return fact.model_copy(update=update)


def _with_more(old: Fact, fact: Fact) -> Fact:
    """The known fact, seen once more: what was unknown of it is filled in, nothing that was known changes. A plan and
    what holds tell one another nothing."""
    seen = {"last_seen": fact.last_seen}
    if (old.temporal is Temporal.FUTURE) is not (fact.temporal is Temporal.FUTURE):
        return old.model_copy(update=seen)
    names = ["subject_type", "object_type", "when", "stated_by", "confidence"]
    is_past = old.ended_at or old.temporal is Temporal.COMPLETED
    times = ["valid_at", "invalid_at"] if is_past else ["valid_at"]
    more = {name: getattr(fact, name) for name in names + times if getattr(old, name) is None}
    if not _is_in_order(old.valid_at or more.get("valid_at"), old.invalid_at or more.get("invalid_at")):
        more = {name: value for name, value in more.items() if name not in times}
    return old.model_copy(update=more | seen)


def _is_in_order(valid_at: datetime | None, invalid_at: datetime | None) -> bool:
    return valid_at is None or invalid_at is None or valid_at <= invalid_at


def _is_same_time(old: Fact, fact: Fact) -> bool:
    """Whether two facts of one key can be one; only what recurs can be two, at two known times."""
    if fact.predicate not in RECURRING:
        return True
    times = [(old.valid_at, fact.valid_at), (old.invalid_at, fact.invalid_at)]
    if any(one and other and one != other for one, other in times):
        return False
    begin, end = (one or other for one, other in times)
    return _is_in_order(begin, end)
