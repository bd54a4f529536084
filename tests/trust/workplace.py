"""Where runs are tried: a copy of the code, rows, a folder for each run, and the processes of train_sft.py in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, PROJECT_ROOT, RunPaths
from tests.trust.watch import POLL_S, Watch

ROWS_A_TASK = 8
SMALL = (
    "run.device=cpu", "data.utility=rows/utility.jsonl", "data.extraction=rows/extraction.jsonl",
    "data.split=random", "data.val_fraction=0.25", "training.per_device_train_batch_size=2", "training.warmup_steps=2",
    "training.eval_steps=3", "training.logging_steps=1", "export.imatrix_rows=4", "evaluation.limit=1",
)  # fmt: skip
"""What makes configs/nano.yaml small: 12 steps with a checkpoint every 3."""


@dataclass(frozen=True)
class Workplace:
    """`root` holds the copy of the code in code/, and in places/ a folder for each run to start from.

    `overrides` of the config are those of all runs; those in SMALL read its rows.
    """

    root: Path
    overrides: tuple[str, ...] = ()
    config: str = "configs/nano.yaml"

    @property
    def code(self) -> Path:
        return self.root / "code"

    def prepare(self) -> None:
        """Copy what runs and what it reads: changes of the tree meanwhile would be taken for faults."""
        for name in ("observer", "eval", "configs", "data"):
            shutil.copytree(PROJECT_ROOT / name, self.code / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(PROJECT_ROOT / "train_sft.py", self.code)
        rows = self.code / "rows"
        rows.mkdir()
        for path, name in ((GRADING_JSONL, "utility.jsonl"), (EXTRACTION_JSONL, "extraction.jsonl")):
            with (PROJECT_ROOT / path).open(encoding="utf-8") as stream:
                (rows / name).write_text("".join(itertools.islice(stream, ROWS_A_TASK)), encoding="utf-8")

    def place(self, name: str) -> Place:
        """A new folder in which a run sees the same relative paths as in every other."""
        folder = self.root / "places" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for shared in ("configs", "data", "rows"):
            (folder / shared).symlink_to(Path(os.path.relpath(self.code / shared, folder)))
        return Place(self, folder)


@dataclass
class Place:
    """One run's folder, in which the same command is started again and again."""

    workplace: Workplace
    folder: Path
    n_started: int = 0

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.folder / "outputs" / "tried", "tried")

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple[subprocess.Popen[bytes], Watch]]:
        """Start the command, and kill what is left of it at the end; its output goes to out-N.txt and err-N.txt."""
        self.n_started += 1
        command = [sys.executable, str(self.workplace.code / "train_sft.py"), "--config", self.workplace.config]
        command += [word for override in ("run.name=tried", *self.workplace.overrides) for word in ("--set", override)]
        environment = os.environ | {
            "XDG_CACHE_HOME": str(self.cache),
            "MPLCONFIGDIR": str(self.workplace.root / "matplotlib"),  # its list of fonts takes seconds to make
        }
        out, err = self.output("out"), self.output("err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        try:
            yield process, Watch(process.pid, self.paths.root, out)
        finally:
            process.kill()
            process.wait()

    def output(self, stream: str) -> Path:
        """What the last process wrote; `stream` is out or err."""
        return self.folder / f"{stream}-{self.n_started}.txt"

    def last_words(self) -> str:
        """The last line that the last process wrote to stderr."""
        lines = self.output("err").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def run_to_the_end(self) -> Watch:
        """Start the command and watch it to its end, which is a good one."""
        with self.running() as (process, watch):
            while process.poll() is None:
                watch.look()
                time.sleep(POLL_S)
        watch.look()
        assert process.returncode == 0, f"{self.output('err')}: exit code {process.returncode}: {self.last_words()}"
        return watch
