"""Labels beside existing gold: Cohen's kappa, the confusion matrix, agreement on triples, and every disagreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from observer.labeling.outputs import TaskResult
from observer.observation import relation_key
from observer.prompts import Task
from observer.schema import Extraction, ExtractionRow, Label, RawRow, parse_row
from observer.turns.inputs import Item

GOLD_KEYS = {Task.GRADE: ("label",), Task.EXTRACT: ("entities", "relationships")}


def has_gold(item: Item, task: Task) -> bool:
    return all(item.gold.get(key) is not None for key in GOLD_KEYS[task])


def read_gold(item: Item, task: Task) -> tuple[RawRow | None, list[str]]:
    """A row that has gold as a row of the task, or the faults of it."""
    return parse_row(item.fields | {key: item.gold[key] for key in GOLD_KEYS[task]})


def compare(result: TaskResult) -> dict[str, Any]:
    """The report of one task: every labelled row has sound gold here."""
    labelled = [(item.place, _value(read_gold(item, result.task)[0]), found) for item, found in result.labelled]
    pairs = [(gold, found.value) for _, gold, found in labelled]
    report: dict[str, Any] = {"rows": len(pairs)}
    if result.task == Task.GRADE:
        labels = [(str(gold), str(answer)) for gold, answer in pairs]
        report |= {"agreement": _share(gold == answer for gold, answer in labels), "kappa": cohens_kappa(labels)}
        report["confusion"] = confusion(labels)
    else:
        report |= triple_agreement(pairs)
    report["disagreements"] = [
        {"place": place, "gold": _shown(gold), "answer": _shown(found.value), "reasoning": found.reasoning}
        for place, gold, found in labelled
        if _essence(gold) != _essence(found.value)
    ]
    return report


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """(observed - chance) / (1 - chance), chance from both marginals; None where chance alone agrees fully."""
    if not pairs:
        return None
    observed = sum(gold == answer for gold, answer in pairs) / len(pairs)
    golds, answers = Counter(gold for gold, _ in pairs), Counter(answer for _, answer in pairs)
    chance = sum(golds[label] * answers[label] for label in golds) / len(pairs) ** 2
    return None if chance == 1 else round((observed - chance) / (1 - chance), 4)


def confusion(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """gold label -> answered label -> rows."""
    counts = Counter(pairs)
    return {str(gold): {str(answer): counts[(str(gold), str(answer))] for answer in Label} for gold in Label}


def triple_agreement(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """Shares over all triples with their temporal: of the answers in gold, of gold in the answers; and equal rows."""
    both = sum(len(_essence(gold) & _essence(answer)) for gold, answer in pairs)
    golds, answers = sum(len(_essence(gold)) for gold, _ in pairs), sum(len(_essence(answer)) for _, answer in pairs)
    return {
        "rows_equal": _share(_essence(gold) == _essence(answer) for gold, answer in pairs),
        "triples": {"gold": golds, "answered": answers, "both": both},
        "precision": round(both / answers, 4) if answers else None,
        "recall": round(both / golds, 4) if golds else None,
    }


def render(task: str, report: dict[str, Any], limit: int = 20) -> str:
    """The report in words: scores, confusion matrix, the first disagreements."""
    scores = {key: value for key, value in report.items() if key not in ("confusion", "disagreements", "triples")}
    lines = [f"{task}: " + ", ".join(f"{key} {'undefined' if v is None else v}" for key, v in scores.items())]
    if matrix := report.get("confusion"):
        lines.append(f"{'gold, answer →':>16}" + "".join(f"{label:>11}" for label in matrix))
        lines += [f"{gold:>16}" + "".join(f"{count:>11,}" for count in row.values()) for gold, row in matrix.items()]
    disagreements = report["disagreements"]
    for found in disagreements[:limit]:
        lines.append(f"{found['place']}: gold {found['gold']}, answer {found['answer']}  {found['reasoning']}".rstrip())
    if len(disagreements) > limit:
        lines.append(f"… and {len(disagreements) - limit:,} more disagreements in the report")
    return "\n".join(lines)


def _value(row: RawRow | None) -> Label | Extraction | None:
    return row.extraction if isinstance(row, ExtractionRow) else row and row.label


def _essence(value: Label | Extraction | None) -> frozenset[Any]:
    """What has to be equal: the label, or the set of triples with their temporal."""
    if isinstance(value, Extraction):
        return frozenset(relation_key(relation) for relation in value.relationships)
    return frozenset([value])


def _shown(value: Label | Extraction | None) -> str:
    return value.to_compact_json() if isinstance(value, Extraction) else str(value)


def _share(hits: Any) -> float | None:
    hits = list(hits)
    return round(sum(hits) / len(hits), 4) if hits else None
