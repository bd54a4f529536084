"""What a run has left, without what may differ between two equal runs: times, speeds and process numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observer.files import sha256_file

TIMED = {"training.log", "run.lock", "reports/summary.md"}
"""Files whose text holds times, speeds or a process number: it counts that they are there."""


def artefacts(root: Path, cache: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file of a run and of its token cache, checkpoints left out.

    Where a stop lay decides which checkpoints are kept, so they are no artefacts; what they train is.
    """
    files = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "checkpoints"]
    named = {path.relative_to(root).as_posix(): path for path in files}
    named |= {f"token cache/{path.name}": path for path in cache.rglob("*.arrow")}
    return {name: _digest(name, path) for name, path in sorted(named.items())}


def differences(uncut: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """A line for each artefact that is not as in the uncut run."""
    lost = [f"{name}: missing" for name in uncut if name not in found]
    new = [f"{name}: not in the uncut run" for name in found if name not in uncut]
    return lost + new + [f"{name}: differs" for name in uncut if name in found and uncut[name] != found[name]]


def leftovers(*folders: Path) -> list[str]:
    """Temporary and half-written files below the folders."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return [str(p) for p in paths if p.name.startswith(".") or p.name.endswith((".tmp", ".unverified"))]


def _digest(name: str, path: Path) -> str:
    if name in TIMED or (name.startswith("reports/") and path.suffix == ".md"):
        return "there"
    if name == "manifest.json":
        return _of_json(_untimed_stages(json.loads(path.read_text(encoding="utf-8"))["stages"]))
    if name == "metrics.jsonl":
        return _of_json(_lines(path, without={"elapsed_s"}))
    if name.startswith("reports/") and path.suffix == ".json":
        return _of_json(_without(json.loads(path.read_text(encoding="utf-8")), {"date", "examples_per_s"}))
    if name.endswith(".answers.jsonl"):
        return _of_json(_lines(path, without={"date", "seconds"}))
    return sha256_file(path)


def _untimed_stages(stages: dict[str, Any]) -> dict[str, Any]:
    """Every stage with the hashes of what it wrote."""
    return {name: _without(stage["outputs"], TIMED) for name, stage in stages.items()}


def _lines(path: Path, *, without: set[str]) -> list[dict[str, Any]]:
    return [_without(json.loads(line), without) for line in path.read_text(encoding="utf-8").splitlines()]


def _without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
