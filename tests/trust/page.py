"""The page of the nightly set, made of its parts' results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.answers.origin import STAND_IN_NOTE
from eval.reports.tables import table
from observer.console.durations import format_duration
from tests.trust.result import PARTS, TrustResult

TITLES = {
    "faults": "Faults injected",
    "fuzz": "Input fuzzed",
    "attacks": "Attacks tried",
    "load": "Load held",
    "bulk": "Bulk",
    "reproduce": "The same twice",
    "network": "Without network",
    "audit": "Packages with known holes",
}
_MOST_ROWS = 60


def render(results: Mapping[str, TrustResult], unfinished: Mapping[str, str]) -> str:
    """The page; `unfinished` are reasons by the name of each part that ended without a result."""
    about = (
        "What the nightly set tried, on which machine, when, and what came of it. Written by `make trust`; "
        "[trust.md](../trust.md) explains the parts and how to read them, [SECURITY.md](../../SECURITY.md) what is "
        "guaranteed."
    )
    rows = [_row(name, results.get(name), unfinished.get(name)) for name in PARTS]
    parts = ["# Trust", about, table(["part", "result", "date", "commit", "minutes"], rows)]
    if any("nano" in str(_models_of(result.details)) for result in results.values()):
        parts.append(f"> {STAND_IN_NOTE}")
    for name in PARTS:
        parts += [f"## {TITLES[name]}", *_section(name, results.get(name), unfinished.get(name))]
    return "\n\n".join([*parts, verdict(results, unfinished)]) + "\n"


def _models_of(found: Any) -> list[Any]:
    """The models and configs that a part names."""
    return [found.get("model"), found.get("config")] if isinstance(found, Mapping) else []


def verdict(results: Mapping[str, TrustResult], unfinished: Mapping[str, str]) -> str:
    """One line: what passed, what failed, what was not run."""
    finished = {name: results[name] for name in PARTS if name in results and name not in unfinished}
    failed = [name for name, result in finished.items() if not result.passed]
    missing = [name for name in PARTS if name not in finished]
    faults = [f"{what}: {', '.join(names)}" for what, names in (("failed", failed), ("not run", missing)) if names]
    commits = {result.git_commit for result in finished.values()}
    if len(commits) > 1:
        faults.append("the parts ran on different commits")
    n_passed = len(finished) - len(failed)
    if n_passed == len(PARTS):
        return "; ".join([f"**Verdict: all {n_passed} parts passed", *faults]) + ".**"
    return "; ".join([f"**Verdict: {n_passed} of {len(PARTS)} parts passed", *faults]) + ".**"


def _row(name: str, result: TrustResult | None, why: str | None) -> list[str]:
    if result is None or why:
        return [name, "not finished" if why else "not run", "", "", ""]
    outcome = "passed" if result.passed else "**failed**"
    return [name, outcome, result.date[:16].replace("T", " "), result.git_commit or "", f"{result.seconds / 60:.1f}"]


def _section(name: str, result: TrustResult | None, why: str | None) -> list[str]:
    if result is None or why:
        return [f"Not finished: {why}." if why else f"Not run. `python -m tests.trust.nightly --only {name}` runs it."]
    origin = f"`{result.command}`, {format_duration(result.seconds)} on {result.machine}, {result.date}, "
    return [result.summary, *_DETAILS.get(name, details)(result.details), f"{origin}commit {result.git_commit}."]


def details(found: Any) -> list[str]:
    """Any JSON: what is plain as a list, lists of objects and objects of objects as tables; deeper things are left out.

    They are in the part's JSON.
    """
    if not isinstance(found, Mapping):
        return []
    plain = [f"- {_words(name)}: {_show(value)}" for name, value in found.items() if _is_plain(value)]
    parts = ["\n".join(plain)] if plain else []
    for name, value in found.items():
        rows = _rows_of(value)
        if rows:
            parts.append(f"{_words(name)}:\n\n{_table(rows)}")
    return parts


def _rows_of(value: Any) -> list[dict[str, Any]]:
    """The rows of a table; none when it is no list of objects and no object of plain values or objects."""
    if isinstance(value, Mapping) and value:
        if all(isinstance(row, Mapping) for row in value.values()):
            return [{"": key} | dict(row) for key, row in value.items()]
        if all(map(_is_plain, value.values())):
            return [{"": key, "value": one} for key, one in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(row, Mapping) for row in value):
        return [dict(row) for row in value]
    return []


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order in which they first appear; what is not plain has no column."""
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_plain(value)))
    shown = [[_show(row.get(name)) for name in columns] for row in rows[:_MOST_ROWS]]
    more = [f"\n\n… and {len(rows) - _MOST_ROWS} more"] if len(rows) > _MOST_ROWS else []
    return "".join([table([_words(name) for name in columns], shown), *more])


def load_details(found: Any) -> list[str]:
    """A row a part of the load: what became of its requests, how long they took, what memory did."""
    rows = [_load_row(part) for part in found["parts"]]
    about = (
        f"{found['callers']} callers, each asking again as soon as it has its answer, about {found['turns']} turns, of "
        f"{found['model']}; server: {found['server']}. Foreign: another turn's answer; different: neither that nor "
        "what the turn gets alone. The queue is always full, so latency is mostly waiting: callers over requests a "
        "second."
    )
    memory = [_memory_row(part["name"], part["memory"]) for part in found["parts"]]
    slope = (
        "Resident memory, sampled each second. The slope (Theil and Sen's) is of the last 80 % of the samples, with "
        f"its 95 % interval; flat means that the whole interval is below {found['flat_mb_per_min']:g} MB a minute. "
        f"glibc's caches of freed blocks, which grow with threads, were {'on' if found['thread_caches'] else 'off'}."
    )
    return [about, _table(rows), slope, _table(memory)]


def _load_row(part: Mapping[str, Any]) -> dict[str, Any]:
    account, latency = part["account"], part["account"]["latency"] or {}
    waits = {f"{name} ms": round(latency[f"{name}_ms"]) for name in ("p50", "p90", "p99", "max") if latency}
    counts = {name: account[f"n_{name}"] for name in ("answered", "lost", "repeated", "foreign", "different", "errors")}
    callers = {"a caller": f"{account['fewest_by_a_caller']} to {account['most_by_a_caller']}"}
    return {"part": part["name"], **counts, "a second": round(account["requests_per_s"], 1), **waits, **callers}


def _memory_row(name: str, memory: Mapping[str, Any]) -> dict[str, Any]:
    levels = {f"{level} MB": round(memory[f"{level}_mb"]) for level in ("start", "end", "max")}
    slope = "too short"
    if memory["mb_per_min"] is not None:
        slope = f"{memory['mb_per_min']:+.3f} [{memory['low']:+.3f}, {memory['high']:+.3f}]"
    return {"part": name, "samples": memory["n_samples"], **levels, "MB/min": slope}


def bulk_details(found: Any) -> list[str]:
    """A row a run of the bulk path."""
    rows = [
        {
            "run": run["name"],
            "rows in": run["n_in"],
            "rows out": run["n_out"],
            "missing": run["n_missing"],
            "twice": run["n_repeated"],
            "cut at the bound": run["n_truncated"],
            "faults": run["n_faults"],
            "a second": round(run["rows_per_s"], 1),
            "minutes": round(run["seconds"] / 60, 1),
        }
        for run in found["runs"]
    ]
    memory = [
        _memory_row(run["name"], run["memory"]) | {"bytes a row, at most": run["most_bytes_per_row"]}
        for run in found["runs"]
    ]
    about = (
        f"Synthetic turns of the generator, another seed than the shipped rows': `{found['about']}`. A run keeps the "
        f"id of every row, so that none is done twice; its memory may grow by {found['bytes_per_row']} bytes a row."
    )
    return [about, _table(rows), _table(memory)]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _show(value: Any) -> str:
    """A value as a table's cell: one line, without what would end it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return " ".join(str(value).split()).replace("|", "\\|")[:300]


def _words(name: str) -> str:
    return name.removeprefix("n_").replace("_", " ")


_DETAILS: dict[str, Callable[[Any], list[str]]] = {"load": load_details, "bulk": bulk_details}
