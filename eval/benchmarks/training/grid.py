"""The points of a sweep: grid to points, a run's metrics to an outcome, outcomes to a table."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.reports.tables import table
from observer.errors import raise_all
from observer.files import read_text, scan_jsonl
from observer.paths import RunPaths
from observer.runs.manifest import fingerprint

LONGEST_NAME = 60
_SPLIT = re.compile(r",(?![^\[]*\])")


@dataclass(frozen=True)
class Point:
    """One choice of values, by `section.key`; `name` is its run's."""

    name: str
    settings: dict[str, str]

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.settings.items()]


@dataclass(frozen=True)
class Outcome:
    """What a point's run left. `curve` has (seconds, validation NLL) of every evaluation; `metrics` are task scores."""

    point: Point
    error: str | None
    seconds: float
    steps: int
    curve: list[tuple[float, float]]
    final: dict[str, float]
    metrics: dict[str, float]

    @property
    def lowest(self) -> float | None:
        return min((nll for _, nll in self.curve), default=None)

    def time_to(self, target: float | None) -> float | None:
        return None if target is None else time_to(self.curve, target)

    def as_json(self, target: float | None) -> dict[str, Any]:
        return {
            "name": self.point.name, "settings": self.point.settings, "error": self.error, "seconds": self.seconds,
            "steps": self.steps, "time_to_target_s": self.time_to(target), "lowest_nll": self.lowest,
            "final": self.final, "metrics": self.metrics, "curve": self.curve,
        }  # fmt: skip


def parse_grid(texts: Sequence[str]) -> list[Point]:
    """`section.key=a,b` crossed with the next; commas inside brackets part no values. Raises ObserverError.

    Keys that belong together change together: `lora.r:lora.lora_alpha=16:32,32:64` is two points.
    """
    faults = [f"--grid {text}: `section.key=value,value` is expected, or `a.b:c.d=1:2,3:4` for keys that change "
              "together" for text in texts if not _is_axis(text)]  # fmt: skip
    keys = [key for text in texts for key in text.partition("=")[0].split(":")]
    faults += [f"--grid {key}: given twice; name all its values at once" for key in keys if keys.count(key) > 1]
    raise_all(list(dict.fromkeys(faults)))
    axes = [list(dict.fromkeys(_SPLIT.split(text.partition("=")[2]))) for text in texts]
    widths = [text.partition("=")[0].count(":") + 1 for text in texts]
    settings = []
    for chosen in itertools.product(*axes):
        values = [value for choice, n in zip(chosen, widths, strict=True) for value in _parts(choice, n)]
        settings.append(dict(zip(keys, values, strict=True)))
    return [Point(point_name(chosen), chosen) for chosen in settings]


def point_name(settings: dict[str, str]) -> str:
    """`learning_rate-3e-4.r-16`; a hash tells apart what would be too long or lose characters."""
    plain = ".".join(f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items())
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", plain)
    return name if name == plain and len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{fingerprint(settings)[:6]}"


def read_outcome(point: Point, paths: RunPaths, error: str | None) -> Outcome:
    """Read a run's metrics; a failed one keeps what it got to."""
    records = [record for _, record in scan_jsonl(paths.metrics)[0]] if paths.metrics.exists() else []
    seconds_at = elapsed(records)
    evaluations = [record for record in records if "eval_loss" in record]
    curve = [
        (seconds_at[record["step"]], record["eval_loss"]) for record in evaluations if record["step"] in seconds_at
    ]
    final = {name: value for name, value in (evaluations[-1] if evaluations else {}).items() if name != "step"}
    steps = max(seconds_at, default=0)
    return Outcome(point, error, seconds_at.get(steps, 0.0), steps, curve, final, read_metrics(paths.reports))


def elapsed(records: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Seconds of training at each step; a resumed run's clock began again, and is put behind the first one's."""
    seconds_at: dict[int, float] = {}
    before = last = 0.0
    for record in records:
        if "elapsed_s" in record:
            if record["elapsed_s"] < last:
                before += last
            last = record["elapsed_s"]
            seconds_at[record["step"]] = before + last
    return seconds_at


def read_metrics(reports: Path) -> dict[str, float]:
    """The main scores of every evaluated quantization of a run, such as `q4_k_m macro_f1`."""
    found: dict[str, float] = {}
    for path in sorted(reports.glob("evaluation-*.json")):
        report, name = json.loads(read_text(path)), path.stem.removeprefix("evaluation-")
        for part, score in (("grading", "macro_f1"), ("extraction", "triple_f1_temporal")):
            if report.get(part) is not None:
                found[f"{name} {score}"] = report[part][score]
    return found


def time_to(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Seconds until the loss was at `target`, on a line between two evaluations; None if it never was.

    A first evaluation below the target counts with its own time: the true one is earlier.
    """
    for number, (seconds, nll) in enumerate(curve):
        if nll <= target:
            if number == 0:
                return seconds
            earlier_s, earlier_nll = curve[number - 1]
            return earlier_s + (seconds - earlier_s) * (earlier_nll - target) / (earlier_nll - nll)
    return None


def default_target(outcomes: Sequence[Outcome]) -> float | None:
    """The median of the lowest losses: half of the points reach it."""
    lowest = [outcome.lowest for outcome in outcomes if outcome.lowest is not None and not outcome.error]
    return statistics.median(lowest) if lowest else None


def by_time_to(outcomes: Sequence[Outcome], target: float | None) -> list[Outcome]:
    """The fastest first; then those that never reached it, by their lowest loss; then the failed."""

    def order(outcome: Outcome) -> tuple[bool, bool, float]:
        seconds = outcome.time_to(target)
        lowest = float("inf") if outcome.lowest is None else outcome.lowest
        return bool(outcome.error), seconds is None, lowest if seconds is None else seconds

    return sorted(outcomes, key=order)


def to_table(ordered: Sequence[Outcome], target: float | None) -> str:
    """One line a point; why one failed stands below."""
    keys = list(ordered[0].point.settings)
    tasks = sorted({name for outcome in ordered for name in outcome.final})
    scores = sorted({name for outcome in ordered for name in outcome.metrics})
    header = [*(key.rpartition(".")[2] for key in keys), "s to target", "s in all", "steps", "lowest NLL"]
    header += [f"final {name}" for name in tasks] + scores
    rows = []
    for outcome in ordered:
        row = [*outcome.point.settings.values()]
        if outcome.error:
            row += ["failed", *[""] * (len(header) - len(row) - 1)]
        else:
            row += [_number(outcome.time_to(target), 1), _number(outcome.seconds, 1), f"{outcome.steps:,}"]
            row += [_number(outcome.lowest), *(_number(outcome.final.get(name)) for name in tasks)]
            row += [_number(outcome.metrics.get(name), 3) for name in scores]
        rows.append(row)
    failed = [f"- `{outcome.point.name}` failed: {outcome.error}" for outcome in ordered if outcome.error]
    return "\n\n".join([table(header, rows), *failed])


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _is_axis(text: str) -> bool:
    names, equals, values = text.partition("=")
    keys, choices = names.split(":"), _SPLIT.split(values)
    are_keys = all(len(key.split(".")) == 2 and all(key.split(".")) for key in keys)
    return bool(equals) and are_keys and all(len(_parts(c, len(keys))) == len(keys) and c for c in choices)


def _parts(choice: str, n_keys: int) -> list[str]:
    return choice.split(":") if n_keys > 1 else [choice]
