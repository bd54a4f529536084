"""What a run has left, without what may differ between two equal runs: times, speeds and process numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from observer.files import sha256_file

TIMED = {"training.log", "run.lock", "reports/summary.md"}
"""Files whose text holds times, speeds or a process number: it counts that they are there."""


def artefacts(root: Path, cache: Path) -> dict[str, Any]:
    """Name -> content of every file of a run and of its token cache: values of JSON, the SHA-256 of all else.

    Where a stop lay decides which checkpoints are kept, so they are no artefacts; what they train is.
    """
    files = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "checkpoints"]
    named = {path.relative_to(root).as_posix(): path for path in files}
    named |= {f"token cache/{path.name}": path for path in cache.rglob("*.arrow")}
    return {name: _content(name, path) for name, path in sorted(named.items())}


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each artefact that is not as expected, with the first value that differs where it is JSON."""
    lost = [f"{name}: missing" for name in expected if name not in found]
    new = [f"{name}: not expected" for name in found if name not in expected]
    both = [name for name in expected if name in found and expected[name] != found[name]]
    return lost + new + [f"{name}: {_unlike(expected[name], found[name])}" for name in both]


def leftovers(*folders: Path) -> list[str]:
    """Temporary and half-written files below the folders."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return [str(p) for p in paths if p.name.startswith(".") or p.name.endswith((".tmp", ".unverified"))]


def n_values(content: Any) -> int:
    """Of what `artefacts` gives for a file."""
    return len(_flat(content))


def _content(name: str, path: Path) -> Any:
    if name in TIMED or (name.startswith("reports/") and path.suffix == ".md"):
        return "there"
    if name == "manifest.json":  # every stage with the hashes of what it wrote
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return {stage: _without(stages[stage]["outputs"], TIMED) for stage in stages}
    if name == "metrics.jsonl":
        return [_without(row, {"elapsed_s"}) for row in _lines(path)]
    if name.startswith("reports/") and path.suffix == ".json":
        return _without(json.loads(path.read_text(encoding="utf-8")), {"date", "examples_per_s"})
    if name.endswith(".answers.jsonl"):
        return [_without(row, {"date", "seconds"}) for row in _lines(path)]
    return sha256_file(path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())


def _without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _unlike(expected: Any, found: Any) -> str:
    if isinstance(expected, str):
        return "other bytes"
    one, two = _flat(expected), _flat(found)
    unlike = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    first = unlike[0]
    return f"{len(unlike)} of {len(one)} values, first {first}: {one.get(first)!r}, then {two.get(first)!r}"


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """`[3].loss` -> 0.25: every number and word in a value of JSON, in order."""
    if isinstance(value, dict):
        return {key: one for part in value for key, one in _flat(value[part], f"{name}.{part}").items()}
    if isinstance(value, list):
        return {key: one for n, part in enumerate(value) for key, one in _flat(part, f"{name}[{n}]").items()}
    return {name: value}
