"""The faults that are not kills: each is a test, and the nightly set runs these tests and lists what came of them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT

TESTS = (
    "tests/test_disk_faults.py",
    "tests/runs/test_locks.py",
    "tests/test_clock.py",
    "tests/console/test_stopping.py",
)


@dataclass(frozen=True)
class Other:
    """One test: `outcome` is passed, skipped or failed; `reason` says why it is not passed."""

    name: str
    outcome: str
    reason: str
    seconds: float

    @property
    def is_lost(self) -> bool:
        return self.outcome == "failed"


def run_others() -> list[Other]:
    """Run the tests. Raises ObserverError when they cannot be run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *TESTS]
        done = subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not report.exists():
            raise ObserverError(f"{' '.join(TESTS)}: cannot be run: {done.stdout.strip().splitlines()[-1:]}")
        return [_other(case) for case in ElementTree.parse(report).getroot().iter("testcase")]


def _other(case: ElementTree.Element) -> Other:
    failed = next((child for child in case if child.tag in ("failure", "error")), None)
    skipped = case.find("skipped")
    told = failed if failed is not None else skipped
    outcome = "passed" if told is None else "failed" if failed is not None else "skipped"
    reason = "" if told is None else told.get("message", "").split("\n")[0]
    return Other(
        case.get("name", "").removeprefix("test_").replace("_", " "), outcome, reason, float(case.get("time", 0))
    )
