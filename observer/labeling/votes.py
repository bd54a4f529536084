"""Several answers about one exchange become one, with the share that agrees as its confidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from observer.labeling.prompts import GradingAnswer
from observer.observation import relation_key
from observer.schema import Entity, Extraction, Label, Relationship


@dataclass(frozen=True)
class Consensus:
    """The row's gold; `confidence` is None where a single answer gave none, `value` where the votes do not agree."""

    value: Label | Extraction | None
    confidence: float | None = None
    reasoning: str = ""


def agree_on_label(votes: Sequence[GradingAnswer], asked: int) -> Consensus:
    """The label with most votes; among equals the higher one. A vote that was set aside agrees with none."""
    if asked == 1:
        return Consensus(votes[0].label, votes[0].confidence, votes[0].reasoning)
    counts = Counter(vote.label for vote in votes)
    label = max(Label, key=lambda label: (counts[label], list(Label).index(label)))
    reasoning = next(vote.reasoning for vote in votes if vote.label == label)
    return Consensus(label, round(counts[label] / asked, 4), reasoning)


def agree_on_extraction(votes: Sequence[Extraction], asked: int) -> Consensus:
    """The relationships that at least half of the votes have, spelled as in the first that has them.

    Confidence is the mean share of votes behind each; for an empty answer, the share of empty votes.
    """
    if asked == 1:
        return Consensus(votes[0])
    firsts: dict[tuple[str, ...], Relationship] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for vote in votes:
        own = {relation_key(relation): relation for relation in reversed(vote.relationships)}
        counts.update(own.keys())
        firsts = own | firsts
    kept = sorted((key for key in counts if 2 * counts[key] >= asked), key=list(firsts).index)
    if kept:
        share = sum(counts[key] for key in kept) / len(kept) / asked
        return Consensus(_with_entities([firsts[key] for key in kept], votes, asked), round(share, 4))
    empty = sum(not vote.relationships for vote in votes)
    return Consensus(Extraction() if 2 * empty >= asked else None, round(empty / asked, 4))


def _with_entities(kept: list[Relationship], votes: Sequence[Extraction], asked: int) -> Extraction:
    firsts: dict[str, Entity] = {}
    for entity in (entity for vote in votes for entity in vote.entities):
        firsts.setdefault(entity.name.casefold(), entity)
    relationships = [
        relation.model_copy(
            update={
                "subject": firsts[relation.subject.casefold()].name,
                "object": firsts[relation.object.casefold()].name,
            }
        )
        for relation in kept
    ]
    used = {end.casefold() for relation in kept for end in (relation.subject, relation.object)}
    counts = Counter(name for vote in votes for name in {entity.name.casefold() for entity in vote.entities})
    entities = [entity for name, entity in firsts.items() if name in used or 2 * counts[name] >= asked]
    return Extraction(entities=entities, relationships=relationships)
