"""What a file of version 1 keeps in facts and operations alone, which are derived anew: some ends of facts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from observer.memory.facts import End, Fact, Reason, fact_of
from observer.memory.rules import why_not_both
from observer.memory.said import Said


def ends_by_source(
    forgotten: Iterable[tuple[str, Fact]], known: Iterable[Fact], told: Iterable[Said]
) -> dict[str, list[End]]:
    """Source -> the facts that ended with it. `forgotten` are sources, and what each asked to forget; of the `known`
    facts those count that gave way to one which was deleted since: no observation of their last moment states it."""
    ends: dict[str, list[End]] = defaultdict(list)
    for source, fact in forgotten:
        ends[source].append(End.of(fact))
    gave_way = [fact for fact in known if fact.ended_by in (Reason.SUPERSEDED, Reason.CONTRADICTED)]
    last_moments = {fact.ended_at for fact in gave_way}
    then: dict[object, list[Said]] = defaultdict(list)
    for said in told:
        if said.seen_at in last_moments:
            then[said.seen_at].append(said)
    for fact in gave_way:
        last = then[fact.ended_at]
        stated = [fact_of(one, {}, said.seen_at) for said in last for one in said.observation.relationships]
        if last and not any(why_not_both(other, fact) for other in stated):
            ends[last[0].source].append(End.of(fact))
    return ends
