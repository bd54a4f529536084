"""The page of the nightly set, made of its tests' results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from eval.answers.origin import STAND_IN_NOTE
from eval.reports.tables import table
from tests.trust.results import OF, ORIGIN, PARTS, Result

ABOUT = (
    "What the nightly set tried, on which machine, when, and what came of it. Written by `make trust`; "
    "[trust.md](../trust.md) explains the parts and how to read them, [SECURITY.md](../../SECURITY.md) what is "
    "guaranteed."
)


def render(results: Mapping[str, Result]) -> str:
    """The page; the key of a result does not matter."""
    found = {part: [result for result in results.values() if result.part == part] for part in PARTS}
    rows = [_row(part, found[part]) for part in PARTS]
    parts = ["# Trust", ABOUT, table(["part", "result", "tests", "date", "commit", "minutes"], rows)]
    if any("nano" in result.properties.get("settings", "") for result in results.values()):
        parts.append(f"> {STAND_IN_NOTE}")
    for part, (title, *_) in PARTS.items():
        parts += [f"## {title}", *_section(part, found[part])]
    return "\n\n".join([*parts, verdict(found)]) + "\n"


def verdict(found: Mapping[str, Sequence[Result]]) -> str:
    """One line: what passed, what failed, what was not run."""
    outcomes = {part: outcome(results) for part, results in found.items()}
    faults = [
        f"{what}: {', '.join(names)}"
        for what in ("failed", "skipped", "partly run", "not run")
        if (names := [part for part, ended in outcomes.items() if ended == what])
    ]
    if len(_all("commit", [result for results in found.values() for result in results])) > 1:
        faults.append("the tests ran on different commits")
    n_passed = sum(ended == "passed" for ended in outcomes.values())
    count = f"all {n_passed}" if n_passed == len(PARTS) else f"{n_passed} of {len(PARTS)}"
    return "; ".join([f"**Verdict: {count} parts passed", *faults]) + ".**"


def outcome(results: Sequence[Result]) -> str:
    """Of a part: that of its worst test; a skipped one beside others that passed does not count."""
    ended = {result.outcome for result in results}
    if "failed" not in ended and len(results) < max((int(one.properties.get(OF, 0)) for one in results), default=0):
        return "partly run"
    return next((what for what in ("failed", "passed", "skipped") if what in ended), "not run")


def _row(part: str, results: Sequence[Result]) -> list[str]:
    ended = outcome(results)
    shown = "**failed**" if ended == "failed" else ended
    if not results:
        return [part, shown, "", "", "", ""]
    minutes = sum(result.seconds for result in results) / 60
    date = max(result.date for result in results)
    return [part, shown, str(len(results)), date, ", ".join(_all("commit", results)), f"{minutes:.1f}"]


def _section(part: str, results: Sequence[Result]) -> list[str]:
    if not results:
        return [f"Not run. `python -m tests.trust.nightly --only {part}` runs it."]
    counts = Counter(result.outcome for result in results)
    said = [", ".join(f"{n} {what}" for what, n in counts.items()) + "."]
    said += [f"- {words(result.test)}: **{result.outcome}**, {result.reason}" for result in results if result.reason]
    measured = [result for result in results if result.figures]
    for function in dict.fromkeys(result.test.partition("[")[0] for result in measured):
        said.append(figures([result.figures for result in measured if result.test.partition("[")[0] == function]))
    return [*said, "; ".join(value for name in ORIGIN for value in _all(name, results)) + "."]


def figures(tests: Sequence[Mapping[str, str]]) -> str:
    """A list of one test's figures, a table of several's: columns in the order in which they first appear."""
    if len(tests) == 1:
        return "\n".join(f"- {words(name)}: {cell(value)}" for name, value in tests[0].items())
    columns = list(dict.fromkeys(name for test in tests for name in test))
    rows = [[cell(test.get(name, "")) for name in columns] for test in tests]
    return table([words(name) for name in columns], rows)


def cell(value: str) -> str:
    """One line, without what would end a table's cell; whole numbers with their thousands apart."""
    return f"{int(value):,}" if value.isascii() and value.isdigit() else " ".join(value.split()).replace("|", "\\|")


def words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _all(name: str, results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(filter(None, (result.properties.get(name, "") for result in results))))
