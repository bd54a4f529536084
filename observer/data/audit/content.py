"""Gold against its own text and schema: conflicts, grounding, endpoints, inventories, name and token lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from observer.data.audit.findings import Finding
from observer.data.audit.leakage import same
from observer.data.audit.rows import AuditRow
from observer.observation import relation_key
from observer.prompts import clean
from observer.schema import ATTRIBUTE_KEYS, MAX_NAME_WORDS, USER, Extraction


def content(rows: Sequence[AuditRow], faults: Sequence[str], max_length: int) -> list[Finding]:
    """Hard rules of single rows, and of rows that ask the same. `faults` are the lines that are no rows."""
    golds = [(row, row.extraction) for row in rows if row.extraction]
    pieces = [(row, kind, piece) for row, gold in golds for kind, piece in _pieces(gold)]
    texts = {id(row): _one_line(row.exchange) for row, _ in golds}
    ungrounded = [
        f"{row.place}: {kind} {piece!r}" for row, kind, piece in pieces if _one_line(clean(piece)) not in texts[id(row)]
    ]
    names = [(row, piece) for row, kind, piece in pieces if kind == "name"]
    long = [f"{row.place}: name {name!r}" for row, name in names if len(name.split()) > MAX_NAME_WORDS]
    ends = [(row, end) for row, gold in golds for r in gold.relationships for end in (r.subject, r.object)]
    known = {row.place: {entity.name for entity in gold.entities} for row, gold in golds}
    loose = [f"{row.place}: endpoint {end!r}" for row, end in ends if end not in known[row.place]]
    broken = [*faults, *(f"{row.place}: {fault}" for row, gold in golds for fault in _outside(gold))]
    too_long = [f"{row.place}: {row.tokens} tokens" for row in rows if row.tokens > max_length]
    return [
        _conflicts(rows),
        Finding("grounding", "name or `when` not in the text", ungrounded, len(pieces)),
        Finding("endpoints", "endpoint that is no entity", loose, len(ends)),
        Finding("closed_inventories", "line unreadable, or outside the schema", broken, len(rows) + len(faults)),
        Finding("long_names", f"name of over {MAX_NAME_WORDS} words", long, len(pieces)),
        Finding("truncated", f"row of over {max_length:,} tokens", too_long, len(rows)),
    ]


def _pieces(gold: Extraction) -> list[tuple[str, str]]:
    """What has to stand in the text, and what it is."""
    names = [("name", entity.name) for entity in gold.entities if entity.name != USER]
    return names + [("when", relation.when) for relation in gold.relationships if relation.when]


def _one_line(text: str) -> str:
    return " ".join(text.split())


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
