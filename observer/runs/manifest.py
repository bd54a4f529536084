"""The stages of a run: for each the hash of its inputs and of what it wrote, so that a rerun skips it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from observer.console.stopping import check_asked
from observer.errors import ObserverError
from observer.files import parse_json, read_text, sha256_file, write_json
from observer.paths import PROJECT_ROOT

TRACED_PACKAGES = "torch transformers trl peft accelerate datasets unsloth gguf llama-cpp-python bitsandbytes".split()


class Manifest:
    """`manifest.json` of one run; every stage is recorded only after its outputs are in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read()

    def read(self) -> None:
        """Take what the file says now: another process may have run stages."""
        self.stages = _read_stages(self.path) if self.path.exists() else {}

    def run(
        self, stage: str, inputs: dict[str, Any], outputs: Sequence[Path], work: Callable[[], dict[str, Any] | None]
    ) -> bool:
        """Do `work` unless it was done on the same inputs and its outputs are untouched; say and return whether it ran.

        `inputs` are JSON values or paths (hashed by content). What `work` returns is kept as the stage's notes.
        """
        check_asked()
        started, key = time.monotonic(), fingerprint(inputs)
        if self._is_done(stage, key, outputs):
            print(f"{stage}: done before on the same inputs, skipped", flush=True)
            return False
        notes = work()
        missing = [str(path) for path in outputs if not path.exists()]
        assert not missing, f"stage {stage} did not write {missing}"
        self.stages[stage] = {
            "inputs": key,
            "outputs": {self._name(path): sha256_file(path) for path in outputs},
            "notes": notes or {},
        }
        write_json(self.path, {"environment": environment(), "stages": self.stages})
        print(f"{stage}: done in {time.monotonic() - started:.1f} s", flush=True)
        return True

    def notes(self, stage: str) -> dict[str, Any]:
        return self.stages.get(stage, {}).get("notes", {})

    def _is_done(self, stage: str, key: str, outputs: Sequence[Path]) -> bool:
        record = self.stages.get(stage)
        if record is None or record["inputs"] != key or set(record["outputs"]) != {self._name(p) for p in outputs}:
            return False
        return all(path.exists() and sha256_file(path) == record["outputs"][self._name(path)] for path in outputs)

    def _name(self, path: Path) -> str:
        root = self.path.parent
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _read_stages(path: Path) -> dict[str, dict[str, Any]]:
    try:
        stages = parse_json(read_text(path))["stages"]
        found = {name: {key: stage[key] for key in ("inputs", "outputs", "notes")} for name, stage in stages.items()}
        if not all(isinstance(stage[key], dict) for stage in found.values() for key in ("outputs", "notes")):
            raise TypeError("outputs and notes are objects")
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ObserverError(f"{path}: not a manifest of ours; delete it to start the run anew") from error
    return found


def fingerprint(inputs: dict[str, Any]) -> str:
    """SHA-256 of named inputs; a Path counts by the content of its file or folder."""
    resolved = {name: sha256_file(v) if isinstance(v, Path) else v for name, v in inputs.items()}
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, default=str).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Package versions, Python and git commit, for tracing an artefact."""
    versions = {}
    for package in TRACED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"python": sys.version.split()[0], "packages": versions, "git_commit": git_commit()}


def git_commit(checkout: Path = PROJECT_ROOT) -> str | None:
    """The checkout's commit, with `+` behind it when the tree has changes; None outside a checkout."""
    try:
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
