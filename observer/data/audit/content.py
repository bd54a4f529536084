"""Gold against its own text and schema: conflicts, grounding, endpoints, inventories, name and token lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from observer.data.audit.findings import Finding
from observer.data.audit.leakage import same
from observer.data.audit.rows import AuditRow
from observer.observation import relation_key
from observer.prompts import clean
from observer.schema import ATTRIBUTE_KEYS, MAX_NAME_WORDS, USER, Extraction

Extractions = list[tuple[AuditRow, Extraction]]


def content(rows: Sequence[AuditRow], faults: Sequence[str], max_length: int) -> list[Finding]:
    """Hard rules of single rows, and of rows that ask the same. `faults` are the lines that are no rows."""
    extractions = [(row, row.extraction) for row in rows if row.extraction]
    n_names = sum(len(_names(gold)) + len(_times(gold)) for _, gold in extractions)
    n_ends = sum(2 * len(gold.relationships) for _, gold in extractions)
    broken = [*faults, *(f"{row.place}: {fault}" for row, gold in extractions for fault in _outside(gold))]
    too_long = [f"{row.place}: {row.tokens} tokens" for row in rows if row.tokens > max_length]
    return [
        _conflicts(rows),
        Finding("grounding", "name or `when` not in the text", _lines(extractions, _ungrounded), n_names),
        Finding("endpoints", "endpoint that is no entity", _lines(extractions, _endpoints), n_ends),
        Finding("closed_inventories", "line unreadable, or outside the schema", broken, len(rows) + len(faults)),
        Finding("long_names", f"name of over {MAX_NAME_WORDS} words", _lines(extractions, _long_names), n_names),
        Finding("truncated", f"row of over {max_length:,} tokens", too_long, len(rows)),
    ]


def _lines(extractions: Extractions, faults_of: Callable[[AuditRow, Extraction], list[str]]) -> list[str]:
    return [f"{row.place}: {fault}" for row, gold in extractions for fault in faults_of(row, gold)]


def _names(gold: Extraction) -> list[str]:
    return [entity.name for entity in gold.entities if entity.name != USER]


def _times(gold: Extraction) -> list[str]:
    return [relation.when for relation in gold.relationships if relation.when]


def _ungrounded(row: AuditRow, gold: Extraction) -> list[str]:
    text = " ".join(row.exchange.split())
    pieces = [("name", name) for name in _names(gold)] + [("when", when) for when in _times(gold)]
    return [f"{kind} {piece!r}" for kind, piece in pieces if " ".join(clean(piece).split()) not in text]


def _endpoints(_: AuditRow, gold: Extraction) -> list[str]:
    names = {entity.name for entity in gold.entities}
    ends = [end for relation in gold.relationships for end in (relation.subject, relation.object)]
    return [f"endpoint {end!r}" for end in ends if end not in names]


def _long_names(_: AuditRow, gold: Extraction) -> list[str]:
    return [f"name {name!r}" for name in _names(gold) if len(name.split()) > MAX_NAME_WORDS]


def _outside(gold: Extraction) -> list[str]:
    """What the types alone let through: attribute keys, and an entity that appears twice."""
    keys = sorted({key for entity in gold.entities for key in entity.attributes} - set(ATTRIBUTE_KEYS))
    twice = sorted(name for name, n in Counter(entity.name for entity in gold.entities).items() if n > 1)
    return [f"unknown attribute {key!r}" for key in keys] + [f"entity {name!r} appears twice" for name in twice]


def _conflicts(rows: Sequence[AuditRow]) -> Finding:
    """User turns that, after the same earlier turns, carry more than one gold within a task; in any parts."""
    asked: dict[tuple[str, ...], dict[object, AuditRow]] = {}
    for row in rows:
        asked.setdefault((row.task, same(row.context), same(row.user_turn)), {}).setdefault(_gold(row), row)
    broken = [
        ", ".join(f"{row.place}: {row.completion}" for row in list(answers.values())[:2])
        for answers in asked.values()
        if len(answers) > 1
    ]
    return Finding("conflicting_gold", "user turn with conflicting gold", broken, len(asked))


def _gold(row: AuditRow) -> object:
    """The label, or the set of facts with their state; the order of facts does not matter."""
    if row.extraction is None:
        return row.completion
    return frozenset(map(relation_key, row.extraction.relationships))
