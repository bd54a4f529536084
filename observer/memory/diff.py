"""What an observation changes in what is known: ADD, INVALIDATE or NOOP. Pure: nothing is read, nothing is written.

Statements of one observation never end one another. What was said later stands: an observation that is older than
what is known adds to the past and ends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from observer.memory.facts import Fact, Key, Operation, OperationKind, Reason, fact_id, fact_of, in_utc
from observer.memory.rules import RECURRING, TIMELESS, related_predicates, why_not_both
from observer.observation import Observation
from observer.schema import Temporal, canonical_triple
from observer.turns.pronouns import is_nobodys_name

_ORDER = (Temporal.COMPLETED, Temporal.ONGOING, Temporal.FUTURE)


def diff(observation: Observation, known: Iterable[Fact], seen_at: datetime | None = None) -> list[Operation]:
    """The operations, in an order in which they can be applied. Applying them and asking again gives NOOPs only.

    `known` holds ended facts too. `seen_at`, when the exchange was said, is by default the observation's own time,
    else now.
    """
    seen_at = in_utc(seen_at or observation.at or datetime.now(UTC))
    grounded, ungrounded = _facts_of(observation, seen_at)
    comparison = _Comparison(known, grounded, seen_at)
    for state in _ORDER:
        for fact in grounded:
            if fact.temporal is state:
                comparison.take(fact)
    left_out = [Operation(kind=OperationKind.NOOP, reason=Reason.UNGROUNDED, fact=fact) for fact in ungrounded]
    return comparison.operations + left_out


def apply_operations(known: Iterable[Fact], operations: Iterable[Operation]) -> list[Fact]:
    """What is known afterwards, in the order in which it became known."""
    facts = {fact.id: fact for fact in known}
    facts |= {operation.fact.id: operation.fact for operation in operations if operation.is_stored}
    return list(facts.values())


def names_and_predicates(observation: Observation) -> tuple[set[str], set[str]]:
    """Facts with one of these names, in lower case, and one of these predicates are all that `diff` need know."""
    names: set[str] = set()
    predicates: set[str] = set()
    for relationship in observation.relationships:
        subject, predicate, obj = canonical_triple(
            relationship.subject, str(relationship.predicate), relationship.object
        )
        names |= {subject, obj}
        predicates |= related_predicates(predicate)
    return names, predicates


def _facts_of(observation: Observation, seen_at: datetime) -> tuple[list[Fact], list[Fact]]:
    """What it states, and what it states of names that are none, or stand nowhere in the text."""
    types = {entity.name: entity.type for entity in observation.entities}
    invented = {entity.name for entity in observation.entities if not entity.is_grounded}
    grounded, ungrounded = [], []
    for relationship in observation.relationships:
        fact = fact_of(relationship, types, seen_at)
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


class _Comparison:
    """The known facts, kept up to date with the operations so far."""

    def __init__(self, known: Iterable[Fact], stated: Iterable[Fact], seen_at: datetime) -> None:
        self.operations: list[Operation] = []
        self._seen_at = seen_at
        self._stated = {(fact.key, fact.temporal) for fact in stated}
        self._facts: dict[Key, dict[str, Fact]] = {}
        for fact in known:
            self._put(fact)

    def take(self, fact: Fact) -> None:
        steps = {Temporal.COMPLETED: self._completed, Temporal.ONGOING: self._ongoing, Temporal.FUTURE: self._future}
        steps[fact.temporal](fact)

    def _completed(self, fact: Fact) -> None:
        """It is over: end what is known of it, and see that again, or add it as past."""
        current = self._current(fact.key, Temporal.ONGOING)
        if not current and (plan := self._called_off(fact)):
            return self._end(plan, Reason.CALLED_OFF, None) if plan.is_current else self._see_again(plan, fact)
        is_back = (fact.key, Temporal.ONGOING) in self._stated  # "I left, and now I am there again"
        if current and not is_back and current.last_seen <= self._seen_at and _is_same_time(current, fact):
            self._end(current, Reason.STATED, fact.invalid_at)
        plan = self._current(fact.key, Temporal.FUTURE)
        is_planned_again = (fact.key, Temporal.FUTURE) in self._stated
        same = [old for old in self._past(fact.key) if _is_same_time(old, fact)]
        if plan and not is_planned_again and plan.last_seen <= self._seen_at and not self._is_to_come(plan):
            self._end(plan, Reason.CAME_TRUE, fact.invalid_at)
            same = [old for old in same if old.ended_at == self._seen_at]  # what was over before was another time
        if same:
            self._see_again(_closest(same, fact, self._seen_at), fact)
        else:
            self._add(_ended(fact, self._seen_at, Reason.STATED, fact.invalid_at))

    def _called_off(self, fact: Fact) -> Fact | None:
        """The plan that is over before its time has come, where no other time is named; or that was before."""
        is_told = any(old.ended_at == self._seen_at for old in self._past(fact.key))  # it was of that, not of the plan
        if is_told or fact.valid_at or fact.invalid_at or (fact.key, Temporal.FUTURE) in self._stated:
            return None
        plans = [
            old
            for old in self._of(fact.key)
            if self._is_to_come(old)
            and (old.last_seen <= self._seen_at if old.is_current else old.ended_by is Reason.CALLED_OFF)
        ]
        return max(plans, key=lambda plan: (plan.is_current, plan.id), default=None)

    def _is_to_come(self, fact: Fact) -> bool:
        """A plan whose time is known, and lies behind what is being said."""
        return fact.temporal is Temporal.FUTURE and fact.valid_at is not None and fact.valid_at > self._seen_at

    def _ongoing(self, fact: Fact) -> None:
        held = [old for old in self._of(fact.key) if old.temporal is not Temporal.FUTURE]
        not_over = [old for old in held if old.ended_at is None or old.ended_at > self._seen_at]
        known = min(not_over, key=_told_at, default=None)
        over_at = self._over_since(fact).ended_at
        if known and (over_at is None or _told_at(known) <= over_at):
            if known.temporal is Temporal.COMPLETED:  # told only as over so far: here it held
                self._end_rivals(fact)
                known = known.model_copy(update={"temporal": fact.temporal, "first_seen": fact.first_seen})
            return self._see_again(known, fact)
        plan = self._current(fact.key, Temporal.FUTURE)
        if plan and plan.last_seen <= self._seen_at:
            self._end(plan, Reason.CAME_TRUE, None)
        self._add_in_place_of_rivals(fact)

    def _future(self, fact: Fact) -> None:
        current = self._current(fact.key, Temporal.ONGOING) or self._current(fact.key, Temporal.FUTURE)
        later = [old for old in self._of(fact.key) if old.ended_at and old.ended_at > self._seen_at]
        if current and current.temporal is Temporal.FUTURE and fact.valid_at and current.last_seen < self._seen_at:
            put_off = {name: getattr(fact, name) for name in ("valid_at", "invalid_at", "when")}
            current = current.model_copy(update=put_off)
        if current or later:
            return self._see_again(current or min(later, key=_end_of), fact)
        self._add_in_place_of_rivals(fact)

    def _add_in_place_of_rivals(self, fact: Fact) -> None:
        self._end_rivals(fact)
        self._add(self._over_since(fact))

    def _end_rivals(self, fact: Fact) -> None:
        """End what cannot hold beside it any more."""
        for old in self._others(fact):
            if old.is_current and old.last_seen <= self._seen_at and (reason := why_not_both(fact, old)):
                self._end(old, reason, fact.valid_at)

    def _over_since(self, fact: Fact) -> Fact:
        """The fact, as over where that was said later, or what cannot hold beside it: by the first that was."""
        told = Reason.STATED if fact.temporal is Temporal.ONGOING else Reason.CAME_TRUE
        was_over = [old for old in self._of(fact.key) if old.ended_at and old.ended_at <= self._seen_at]
        ends: list[tuple[datetime, Reason, datetime | None]] = []
        ends += [(old.last_seen, told, None) for old in was_over]  # where its end was told once more
        for old in self._others(fact):
            is_new = old.first_seen > self._seen_at
            if (is_new or old.is_current) and (reason := why_not_both(old, fact)):
                ends.append((old.first_seen if is_new else old.last_seen, reason, old.valid_at))
        later = [end for end in ends if end[0] > self._seen_at]
        if not later:
            return fact
        ended_at, reason, invalid_at = min(later, key=lambda end: end[0])
        return _ended(fact, ended_at, reason, fact.invalid_at or invalid_at)

    def _others(self, fact: Fact) -> list[Fact]:
        """Those of the same state that this observation does not state itself."""
        known = [old for facts in self._facts.values() for old in facts.values() if old.temporal is fact.temporal]
        return [old for old in known if (old.key, old.temporal) not in self._stated]

    def _add(self, fact: Fact) -> None:
        fact = fact.model_copy(update={"id": fact_id(fact.key, len(self._of(fact.key)))})
        self._operate(OperationKind.ADD, Reason.NEW, fact)

    def _end(self, old: Fact, reason: Reason, invalid_at: datetime | None) -> None:
        self._operate(OperationKind.INVALIDATE, reason, _ended(old, self._seen_at, reason, invalid_at))

    def _see_again(self, old: Fact, fact: Fact) -> None:
        kind, reason = OperationKind.NOOP, Reason.KNOWN
        if self.operations and self.operations[-1].fact.id == old.id:  # just ended, or just seen
            last = self.operations.pop()
            kind, reason = last.kind, last.reason
        self._operate(kind, reason, _with_more(old, fact))

    def _operate(self, kind: OperationKind, reason: Reason, fact: Fact) -> None:
        self._put(fact)
        self.operations.append(Operation(kind=kind, reason=reason, fact=fact))

    def _put(self, fact: Fact) -> None:
        self._facts.setdefault(fact.key, {})[fact.id] = fact

    def _of(self, key: Key) -> list[Fact]:
        return list(self._facts.get(key, {}).values())

    def _current(self, key: Key, temporal: Temporal) -> Fact | None:
        return next((fact for fact in self._of(key) if fact.is_current and fact.temporal is temporal), None)

    def _past(self, key: Key) -> list[Fact]:
        """What held once; a plan never held."""
        return [fact for fact in self._of(key) if fact.ended_at and fact.temporal is not Temporal.FUTURE]


def _ended(fact: Fact, ended_at: datetime, reason: Reason, invalid_at: datetime | None) -> Fact:
    """The fact as over. An end that lies before the beginning is no end: it stays unknown."""
    ends = [end for end in (invalid_at, fact.invalid_at) if end and _is_in_order(fact.valid_at, end)]
    update = {"ended_at": ended_at, "ended_by": reason, "invalid_at": ends[0] if ends else None}
    return fact.model_copy(update=update)


def _with_more(old: Fact, fact: Fact) -> Fact:
    """The known fact, seen once more: what was unknown of it is filled in, nothing that was known changes."""
    names = ["subject_type", "object_type", "when", "stated_by", "confidence"]
    is_past = old.ended_at or old.temporal is Temporal.COMPLETED
    times = ["valid_at", "invalid_at"] if is_past else ["valid_at"]
    more = {name: getattr(fact, name) for name in names + times if getattr(old, name) is None}
    if not _is_in_order(old.valid_at or more.get("valid_at"), old.invalid_at or more.get("invalid_at")):
        more = {name: value for name, value in more.items() if name not in times}
    seen = {"last_seen": max(old.last_seen, fact.last_seen)}
    if old.temporal is fact.temporal:  # a plan, or an end, told earlier is no earlier beginning
        seen["first_seen"] = min(old.first_seen, fact.first_seen)
        if old.temporal is Temporal.COMPLETED and old.ended_at:
            seen["ended_at"] = min(old.ended_at, fact.last_seen)
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


def _closest(past: list[Fact], fact: Fact, seen_at: datetime) -> Fact:
    """Of the past facts that it can be, the one that ended at this moment, or before it, then the one of the same
    times, then the last to end. Seeing it makes it no less close: the same statement finds it again."""

    def closeness(old: Fact) -> tuple[bool, bool, int, tuple[datetime, str]]:
        ended_at, _ = end = _end_of(old)
        n_same_times = (old.valid_at == fact.valid_at) + (old.invalid_at == fact.invalid_at)
        return ended_at == seen_at, ended_at < seen_at, n_same_times, end

    return max(past, key=closeness)


def _told_at(fact: Fact) -> datetime:
    """When it was first told to hold, or only that it is over."""
    return fact.ended_at if fact.ended_at and fact.temporal is Temporal.COMPLETED else fact.first_seen


def _end_of(fact: Fact) -> tuple[datetime, str]:
    assert fact.ended_at
    return fact.ended_at, fact.id
