"""What one part of the nightly set found, as `outputs/trust/<name>.json`; `trust` makes a page of them.

Every part writes its own with `save_result` and exits 1 when it did not pass.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from observer.errors import ObserverError
from observer.files import read_text, write_json
from observer.paths import PROJECT_ROOT

TRUST_FOLDER = Path("outputs/trust")
PARTS = ("faults", "fuzz", "attacks", "load", "bulk", "reproduce", "network", "audit")
"""The parts of the set, in the order of the page."""


@dataclass(frozen=True)
class TrustResult:
    """`summary` is one sentence with the numbers; `details` is any JSON, different for each part."""

    command: str
    machine: str
    date: str
    git_commit: str | None
    seconds: float
    passed: bool
    summary: str
    details: Any


def save_result(
    name: str,
    *,
    command: str,
    seconds: float,
    passed: bool,
    summary: str,
    details: Any,
    folder: Path = TRUST_FOLDER,
) -> Path:
    """Write `folder/name.json`, with this machine, the time and the commit; return its path."""
    from eval.answers.origin import this_machine

    if name not in PARTS:
        raise ValueError(f"{name!r} is none of {', '.join(PARTS)}")
    machine = this_machine()
    result = TrustResult(
        command=command,
        machine=f"{machine.cpu}, {machine.n_cores} cores",
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        git_commit=code_commit(),
        seconds=round(seconds, 1),
        passed=passed,
        summary=summary,
        details=details,
    )
    path = folder / f"{name}.json"
    write_json(path, asdict(result))
    return path


def code_commit() -> str | None:
    """The checkout's commit, with `+` behind it when anything but pages has changed; None outside a checkout.

    The set writes a page of its own, which changes no result.
    """
    from observer.runs.manifest import git_commit

    commit = (git_commit() or "").removesuffix("+")
    return commit + ("" if is_this_code(commit) else "+") if commit else None


def is_this_code(commit: str | None) -> bool:
    """Whether all tracked files but pages are as they were in `commit`; not of a `+`, whose changes nobody knows."""
    if not commit or commit.endswith("+"):
        return False
    compare = ["git", "-C", str(PROJECT_ROOT), "diff", "--quiet", commit, "--", ".", ":!docs", ":!*.md"]
    try:
        return subprocess.run(compare, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def load_results(folder: Path = TRUST_FOLDER) -> dict[str, TrustResult]:
    """The parts that have a result, in the page's order. Raises ObserverError for a file that is none."""
    return {name: load_result(path) for name in PARTS if (path := folder / f"{name}.json").exists()}


def load_result(path: Path) -> TrustResult:
    """One part's result. Raises ObserverError when the file is none."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ObserverError(f"{path}: not JSON ({error}); delete it and run the part again") from error
    if not isinstance(value, Mapping) or set(value) != set(TrustResult.__dataclass_fields__):
        raise ObserverError(f"{path}: not a result of this version; delete it and run the part again")
    return TrustResult(**value)
