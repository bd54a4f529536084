"""What the rows of one part give away about another: prompts, user turns, near-duplicates, families, names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

from observer.data.audit.findings import Finding
from observer.data.audit.rows import TRAIN, AuditRow
from observer.data.audit.similarity import near_duplicates

Parts = dict[str, list[AuditRow]]


def parts_of(rows: Sequence[AuditRow]) -> Parts:
    """Rows by part, train first, in the order in which the parts appear."""
    parts: Parts = {TRAIN: []} if any(row.part == TRAIN for row in rows) else {}
    for row in rows:
        parts.setdefault(row.part, []).append(row)
    return parts


def leakage(rows: Sequence[AuditRow]) -> list[Finding]:
    """Hard rules between train and every other part; without train, between every two parts."""
    pairs = list(_pairs(parts_of(rows)))
    return [
        _shared("identical_prompts", "same prompt as a train row", pairs, lambda r: [(r.task, same(r.exchange))]),
        _shared("identical_user_turns", "same user turn as a train row", pairs, lambda r: [same(r.user_turn)]),
        _near("near_duplicates", "near-duplicate of a train row", pairs),
        _shared("shared_families", "family of a train row", pairs, lambda r: r.families),
        _false_claims(pairs),
    ]


def same(text: str) -> str:
    """What makes two texts identical: case and spaces aside."""
    return " ".join(text.casefold().split())


def _pairs(parts: Parts) -> Iterator[tuple[list[AuditRow], list[AuditRow]]]:
    """(known rows of a part, rows of all others that are checked against them)."""
    names = list(parts)
    for i, known in enumerate(names[:1] if TRAIN in parts else names):
        if checked := [row for name in names[i + 1 :] for row in parts[name]]:
            yield parts[known], checked


def _shared(
    key: str,
    rule: str,
    pairs: Sequence[tuple[list[AuditRow], list[AuditRow]]],
    keys_of: Callable[[AuditRow], Sequence[Hashable]],
) -> Finding:
    """Checked rows that share a key with a known row."""
    broken: dict[str, str] = {}
    total: dict[str, None] = {}
    for known, checked in pairs:
        first = {value: row for row in reversed(known) for value in keys_of(row)}
        for row in checked:
            if values := keys_of(row):
                total[row.place] = None
            if shared := next((value for value in values if value in first), None):
                what = shared if key == "shared_families" else _short(row.user_turn)
                broken.setdefault(row.place, f"{row.place}: {what!r} as {first[shared].place}")
    return Finding(key, rule, list(broken.values()), len(total))


def _near(key: str, rule: str, pairs: Sequence[tuple[list[AuditRow], list[AuditRow]]]) -> Finding:
    found: dict[str, tuple[float, str]] = {}
    total: dict[str, None] = {}
    for known, checked in pairs:
        total |= dict.fromkeys(row.place for row in checked)
        for i, (j, score) in near_duplicates([_words(r) for r in known], [_words(r) for r in checked]).items():
            place = checked[i].place
            line = f"{place}: {_short(checked[i].user_turn)!r} is {score:.2f} like {known[j].place}"
            found[place] = max(found.get(place, (0.0, "")), (score, line))
    most_similar_first = sorted(found.values(), key=lambda pair: -pair[0])
    return Finding(key, rule, [line for _, line in most_similar_first], len(total))


def _false_claims(pairs: Sequence[tuple[list[AuditRow], list[AuditRow]]]) -> Finding:
    """Rows whose `unseen` claims a family or a name that the known rows do show."""
    broken: list[str] = []
    total = 0
    for known, checked in pairs:
        families = {family for row in known for family in row.families}
        names = {name for row in known for name in row.names}
        for row in checked:
            claims = row.unseen.split("+")
            total += bool(row.unseen)
            if "family" in claims and families & set(row.families):
                broken.append(f"{row.place}: claims an unseen family, found {sorted(families & set(row.families))}")
            elif "name" in claims and row.names and names and not set(row.names) - names:
                broken.append(f"{row.place}: claims an unseen name, all are known: {sorted(set(row.names))}")
    return Finding("false_unseen", "`unseen` that train contradicts", broken, total)


def _words(row: AuditRow) -> str:
    return "\n".join(text for _, text in row.turns)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
