"""`make setup`: which torch it takes. The set-up itself is what every clone does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from observer.paths import PROJECT_ROOT

LOCKED = next(
    line.removeprefix("torch==")
    for line in (PROJECT_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("torch==")
)


def planned(python: Path | str, venv: Path) -> str:
    """The commands that a set-up with this Python would run."""
    command = ["make", "--dry-run", "setup", f"PYTHON={python}", f"VENV={venv}"]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("version", "is_taken"), [(LOCKED, True), (f"{LOCKED}+cu130", True), ("2.1.0", False)])
def test_a_torch_of_the_locked_version_is_taken_from_the_system(tmp_path: Path, version: str, is_taken: bool) -> None:
    """A Python that says it has such a torch: to install one into the system's would outlast the test."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *torch*) echo {version} ;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    commands = planned(python, tmp_path / "venv")
    assert ("--system-site-packages" in commands) is is_taken
    assert (f"torch {version}, which {python} has" in commands) is is_taken


def test_the_torch_of_an_environment_is_not_taken(tmp_path: Path) -> None:
    """Its Python makes environments that see the system's packages alone."""
    assert sys.prefix != sys.base_prefix, "the tests run in an environment"
    assert "--system-site-packages" not in planned(sys.executable, tmp_path / "venv")
