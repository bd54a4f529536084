"""`observer clean`: free what a finished run no longer needs, by explicit choice.

Never touched: adapter, reports, the GGUF files of the config and of the adapter, Modelfiles, logs and the manifest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from observer.errors import ObserverError

if TYPE_CHECKING:
    from observer.runs.finished_run import Run

CHOICES = {
    "checkpoints": "what a stopped training resumes from",
    "merged": "adapter and base as one Hugging Face model; the training command makes it anew",
    "intermediates": "GGUF files that the config does not ship, importance matrices, what stopped commands left",
}
_LEAVING = re.compile(r"\..+\.(?P<pid>\d+)\.tmp")


@dataclass(frozen=True)
class Removal:
    """A file or folder that a choice would remove."""

    choice: str
    path: Path
    size_bytes: int


def add_clean_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    clean = commands.add_parser(
        "clean",
        help="remove checkpoints and intermediates of a run",
        description="Show what can go and how large it is; remove what is chosen. Adapter, shipped GGUF files, reports "
        "and logs always stay.",
    )
    clean.add_argument("run_folder", type=Path, metavar="RUN", help="such as outputs/nano")
    for name, what in CHOICES.items():
        clean.add_argument(f"--{name}", action="store_true", help=what)
    clean.add_argument("--yes", action="store_true", help="do not ask")
    clean.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from observer.runs.finished_run import read_run
    from observer.runs.lock import held_for_one_run

    found = read_run(args.run_folder)
    chosen = [name for name in CHOICES if getattr(args, name)]
    removals = find_removals(found)
    print(render(removals, chosen), end="")
    if not chosen:
        if removals:
            print("nothing is chosen, nothing removed; choose by " + ", ".join(f"--{name}" for name in CHOICES))
        return 0
    doomed = [removal for removal in removals if removal.choice in chosen]
    if not doomed:
        return 0
    check_unwritten(found)
    with held_for_one_run(found.paths.lock, "stop it"):
        if not args.yes and not _agrees(doomed, found):
            print("nothing was removed")
            return 1
        remove(doomed)
    print(f"removed {_megabytes(doomed)}")
    return 0


def find_removals(run: Run) -> list[Removal]:
    """Everything that some choice would remove, in the order of the choices."""
    found = {
        "checkpoints": [run.paths.checkpoints],
        "merged": [run.paths.merged],
        "intermediates": _intermediates(run),
    }
    there = [(name, path) for name, paths in found.items() for path in paths if path.exists() or path.is_symlink()]
    return [Removal(name, path, _size_of(path)) for name, path in there]


def render(removals: Sequence[Removal], chosen: Sequence[str]) -> str:
    """A line each, chosen ones marked with `x`."""
    if not removals:
        return "nothing to remove\n"
    lines = [
        f"[{'x' if r.choice in chosen else ' '}] {r.size_bytes / 1e6:>10,.1f} MB  --{r.choice:<13}  {r.path}"
        for r in removals
    ]
    return "\n".join(lines) + "\n"


def check_unwritten(run: Run) -> None:
    """Raise ObserverError while another command writes a file of the run."""
    import psutil

    for path, pid in _leavings(run).items():
        if psutil.pid_exists(pid):
            raise ObserverError(f"{path}: process {pid} is writing this; wait until it is done, or stop it")


def remove(removals: Sequence[Removal]) -> None:
    """Each goes under a temporary name first, so that a stopped removal leaves nothing half whole in place."""
    for removal in removals:
        path = removal.path
        aside = path if _LEAVING.fullmatch(path.name) else path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.rename(aside)
            if aside.is_dir() and not aside.is_symlink():
                shutil.rmtree(aside)
            else:
                aside.unlink()
        except OSError as error:
            raise ObserverError(f"{path}: {error.strerror}; fix its permissions and run the same again") from error


def is_unfinished(checkpoints: Path) -> bool:
    """Whether a training stopped half-way could go on from these."""
    try:
        record = json.loads((checkpoints / "inputs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("is_finished") is False


def _intermediates(run: Run) -> list[Path]:
    from observer.paths import ADAPTER

    kept = {run.paths.gguf(quantization) for quantization in (*run.config.export.quantizations, ADAPTER)}
    folder = run.paths.gguf("").parent
    extra = [path for path in sorted(folder.glob("*.gguf")) if path not in kept]
    extra += sorted(folder.glob("*.gguf.unverified"))
    extra += sorted(run.paths.root.glob("*imatrix*.gguf"))
    return [*extra, *_leavings(run)]


def _leavings(run: Run) -> dict[Path, int]:
    """Temporary files of commands, stopped or at work, and the process of each."""
    paths = sorted(path for place in (run.paths.root, run.paths.gguf("").parent) for path in place.glob(".*.tmp"))
    return {path: int(match["pid"]) for path in paths if (match := _LEAVING.fullmatch(path.name))}


def _agrees(doomed: Sequence[Removal], run: Run) -> bool:
    if not sys.stdin.isatty():
        raise ObserverError(f"{run.paths.root}: nobody to ask here; add --yes to remove {_megabytes(doomed)}")
    if any(r.choice == "checkpoints" for r in doomed) and is_unfinished(run.paths.checkpoints):
        print("The training is not finished; without its checkpoints it starts anew.")
    return input(f"remove {len(doomed)} of them, {_megabytes(doomed)}? [y/N] ").strip().lower() in ("y", "yes")


def _megabytes(removals: Sequence[Removal]) -> str:
    return f"{sum(removal.size_bytes for removal in removals) / 1e6:,.1f} MB"


def _size_of(path: Path) -> int:
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(child.lstat().st_size for child in path.rglob("*") if not child.is_dir())
