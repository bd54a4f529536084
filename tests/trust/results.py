"""What the nightly set found: pytest's JUnit files in outputs/trust/, of each test the newest."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT

TRUST_FOLDER = Path("outputs/trust")
PARTS = {
    "faults": (
        "Faults injected",
        "tests/trust/faults/test_faults.py",
        "tests/test_disk_faults.py",
        "tests/runs/test_locks.py",
        "tests/test_clock.py",
        "tests/console/test_stopping.py",
    ),
    "fuzz": ("Input fuzzed", "tests/trust/fuzz/test_fuzz.py"),
    "attacks": ("Attacks tried", "tests/trust/test_attacks.py"),
    "load": ("Load held", "tests/trust/load/test_load.py"),
    "bulk": ("Bulk", "tests/trust/load/test_bulk.py"),
    "reproduce": ("The same twice", "tests/trust/test_reproduce.py"),
    "network": ("Without network", "tests/trust/test_offline.py"),
    "audit": ("Packages with known holes", "tests/trust/test_audit.py"),
}
"""Title and files of each part, in the order of the page. Of files elsewhere than in tests/trust/ every test counts."""
ORIGIN = ("commit", "machine", "settings")
"""Properties that say where a test ran; all others, but for OF, are its figures."""
OF = "of"
"""Property of every test: how many its part has, whether they were run or not."""


@dataclass(frozen=True)
class Result:
    """One test: `outcome` is passed, failed or skipped, and `reason` says why when it did not pass."""

    part: str
    test: str
    outcome: str
    reason: str
    date: str
    seconds: float
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, str]:
        return {name: value for name, value in self.properties.items() if name not in (*ORIGIN, OF)}


def test_id(node_id: str) -> str:
    """How a JUnit file spells pytest's node id."""
    path, _, name = node_id.partition("::")
    return f"{path.removesuffix('.py').replace('/', '.')}.{name}"


test_id.__test__ = False  # type: ignore[attr-defined]  # no test, whatever its name
_PART_OF = {path.removesuffix(".py").replace("/", "."): part for part, (_, *paths) in PARTS.items() for path in paths}


def load_results(folder: Path = TRUST_FOLDER) -> dict[str, Result]:
    """The newest result of every test of the set. Raises ObserverError for a file that is no JUnit."""
    suites: list[ElementTree.Element] = []
    for path in sorted(folder.glob("*.xml")):
        try:
            suites += ElementTree.parse(path).getroot().iter("testsuite")
        except ElementTree.ParseError as error:
            raise ObserverError(f"{path}: no JUnit file ({error}); delete it and run its tests again") from error
    found: dict[str, Result] = {}
    for suite in sorted(suites, key=lambda suite: suite.get("timestamp", "")):
        for case in suite.iter("testcase"):
            if part := _PART_OF.get(case.get("classname", "")):
                result = _result(part, suite.get("timestamp", ""), case)
                found[f"{case.get('classname')}.{result.test}"] = result
    return found


def _result(part: str, date: str, case: ElementTree.Element) -> Result:
    ended = {child.tag: child for child in case if child.tag in ("failure", "error", "skipped")}
    told = next(iter(ended.values()), None)
    outcome = "passed" if told is None else "skipped" if set(ended) == {"skipped"} else "failed"
    reason = "" if told is None else " ".join((told.get("message") or told.text or "").split())[:300]
    properties = {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
    seconds = float(case.get("time", 0))
    return Result(part, case.get("name", ""), outcome, reason, date[:16].replace("T", " "), seconds, properties)


def origin(settings: dict[str, Any]) -> dict[str, str]:
    """ORIGIN of a test that runs now."""
    from eval.answers.origin import this_machine

    machine = this_machine()
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    return {"commit": code_commit() or "", "machine": f"{machine.cpu}, {machine.n_cores} cores", "settings": words}


def is_current(result: Result | None, now: dict[str, str]) -> bool:
    """Whether a test passed before, with these settings and on this code."""
    if result is None or result.outcome != "passed" or result.properties.get("settings") != now["settings"]:
        return False
    return is_this_code(result.properties.get("commit"))


def code_commit() -> str | None:
    """The checkout's commit, with `+` behind it when anything but pages has changed; None outside a checkout.

    The set writes a page of its own, which changes no result.
    """
    from observer.runs.manifest import git_commit

    commit = (git_commit() or "").removesuffix("+")
    return commit + ("" if is_this_code(commit) else "+") if commit else None


@cache
def is_this_code(commit: str | None) -> bool:
    """Whether all tracked files but pages are as they were in `commit`; not of a `+`, whose changes nobody knows."""
    if not commit or commit.endswith("+"):
        return False
    compare = ["git", "-C", str(PROJECT_ROOT), "diff", "--quiet", commit, "--", ".", ":!docs", ":!*.md"]
    try:
        return subprocess.run(compare, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
