"""Where answers come from: the model, the machine, and the command that asked."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from observer.paths import PROJECT_ROOT, VAL_JSONL, RunPaths
from observer.runs.finished_run import read_run
from observer.runs.manifest import environment, fingerprint

STAND_IN_NOTE = (
    "The base of this model is the nano stand-in, a few million parameters: the numbers show that the "
    "pipeline works, not how good a model of 0.6B parameters is."
)

_ENGINE = ("observer/engine", "observer/observation.py", "observer/prompts.py", "observer/schema.py")


@dataclass(frozen=True)
class ModelInfo:
    """The model; a GGUF's `name` and `file_type` are its own header's.

    Of another backend's, `path` and `file_type` are the spec that opened it, and `size_bytes` is None if not known.
    `served_by` is empty for a model in this process, else such as `Ollama 0.33.0, Q4_K_M, digest 1a2b3c4d5e6f`.
    """

    path: str
    name: str
    file_type: str
    size_bytes: int | None
    is_stand_in: bool
    served_by: str = ""


@dataclass(frozen=True)
class Machine:
    """`n_cores` may be used by this process, which may be fewer than there are."""

    cpu: str
    n_cores: int
    n_threads: int

    def __str__(self) -> str:
        return f"{self.cpu}, {self.n_cores} usable cores, {self.n_threads} threads"


def code_hash(*places: str) -> str:
    """Changes with the engine, and with `places`, files and folders of the project.

    Part of the key of what is kept, so that answers and figures of older code are never mixed with newer ones.
    """
    paths = [PROJECT_ROOT / place for place in (*_ENGINE, *places)]
    sources = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return fingerprint({file.relative_to(PROJECT_ROOT).as_posix(): file for file in sources})


def command_line(program: str, arguments: Sequence[str] | None) -> str:
    """How `eval/NAME.py` or `-m MODULE` was called: with `main`'s arguments, or else the process's."""
    return shlex.join(["python", *program.split(), *(sys.argv[1:] if arguments is None else arguments)])


def this_machine(n_threads: int | None = None) -> Machine:
    """`n_threads`: all usable cores unless given."""
    from observer.engine.llama_model import usable_cores

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return Machine(cpu, usable_cores(), usable_cores() if n_threads is None else n_threads)


def facts_of(command: str, *, n_threads: int | None = None, gpu: str | None = None) -> dict[str, str]:
    """Where and when something was measured: the first lines of its page."""
    versions = environment()
    packages = ", ".join(f"{name} {version}" for name, version in versions["packages"].items() if version)
    return {
        "machine": f"{this_machine(n_threads)}, {os.cpu_count()} cores in all, {gpu or 'no GPU used'}",
        "date": f"{date.today().isoformat()}, commit {versions['git_commit']}",
        "versions": f"Python {versions['python']}, {packages}",
        "command": f"`{command}`",
    }


def split_prefix(split: str, reports: Path) -> str:
    """Keeps the reports of several splits apart: `challenge-`, or `mine-rows-` for mine/rows.jsonl.

    Nothing for the val of the run that the folder `reports` is in, which is the shipped one where there is no run.
    """
    run = RunPaths(reports.parent, "")
    own = read_run(run.root).split.val if run.config.is_file() else VAL_JSONL
    path = VAL_JSONL if split == "val" else Path(split)
    if path.resolve() == own.resolve():
        return ""
    parts = [part for part in path.with_suffix("").parts[-3:] if part != "outputs"]
    return file_name("-".join(parts)) + "-"


def file_name(text: str) -> str:
    """The text as a name for files, without what file systems dislike."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")
