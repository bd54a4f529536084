"""The nightly set: its parts, what each is run with, and the minutes it may take."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from observer.console.durations import format_duration
from observer.paths import PROJECT_ROOT
from tests.trust.result import PARTS, TrustResult, is_this_code

_GRACE_S = 20.0


@dataclass(frozen=True)
class Part:
    """`arguments` of python; `minutes` is the bound. One that `is_timed` tells rates or memory, and runs alone."""

    name: str
    arguments: tuple[str, ...]
    minutes: float
    is_timed: bool = False

    @property
    def command(self) -> str:
        """As the page and the part's own result spell it."""
        return shlex.join(["python", *self.arguments])

    @property
    def script(self) -> Path:
        """The file that runs: the first argument, or of `-m MODULE` the second."""
        first, *rest = self.arguments
        return Path(f"{rest[0].replace('.', '/')}.py" if first == "-m" else first)


def nightly(model: str, config: Path) -> list[Part]:
    """Every part, in the order of the page."""
    parts = [
        Part("faults", ("-m", "tests.trust.faults.inject", "--faults", "all"), 120),
        Part("fuzz", ("-m", "tests.trust.fuzz.fuzz", "--minutes", "60"), 75),
        Part("attacks", ("-m", "tests.trust.attacks", "--model", model), 20),
        Part("load", ("-m", "tests.trust.load.load", "--minutes", "10", "--model", model), 40, is_timed=True),
        Part("bulk", ("-m", "tests.trust.load.bulk", "--turns", "100000", "--model", model), 120, is_timed=True),
        Part("reproduce", ("-m", "tests.trust.reproduce", "--config", str(config)), 60),
        Part(
            "network",
            (
                "-m",
                "tests.trust.offline",
            ),
            30,
        ),
        Part(
            "audit",
            (
                "-m",
                "tests.trust.audit_packages",
            ),
            10,
        ),
    ]
    assert [part.name for part in parts] == list(PARTS)
    return parts


def is_current(part: Part, results: Mapping[str, TrustResult]) -> bool:
    """Whether the part passed before, with the same arguments and the same code."""
    result = results.get(part.name)
    return result is not None and result.passed and result.command == part.command and is_this_code(result.git_commit)


def run_all(parts: Sequence[Part], jobs: int, log_folder: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Run the parts, up to `jobs` side by side; return why by the name of each that ended without a result.

    Those that are timed come last, one by one. Ctrl-C ends what is running. Parts side by side share the cores: threads
    that wait for one another at every step, as torch's do, take many times as long where a core is not theirs.
    """
    from observer.engine.llama_model import usable_cores

    unfinished: dict[str, str] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}

    n_threads = max(1, usable_cores() // jobs)

    def run(part: Part) -> tuple[str, str | None]:
        environment = dict(os.environ)
        if jobs > 1 and not part.is_timed:
            environment.setdefault("OMP_NUM_THREADS", str(n_threads))
        return part.name, _run(part, environment, running, log_folder / f"{part.name}.log", say)

    groups = [[part for part in parts if not part.is_timed], *([part] for part in parts if part.is_timed)]
    for group in groups:
        with ThreadPoolExecutor(jobs) as pool:
            futures: list[Future[tuple[str, str | None]]] = [pool.submit(run, part) for part in group]
            try:
                for future in as_completed(futures):
                    name, why = future.result()
                    if why:
                        unfinished[name] = why
            except BaseException:
                for future in futures:
                    future.cancel()
                for process in list(running.values()):
                    _end(process)
                raise
    return unfinished


def _run(
    part: Part,
    environment: Mapping[str, str],
    running: dict[str, subprocess.Popen[bytes]],
    log: Path,
    say: Callable[[str], None],
) -> str | None:
    """Run one part with its output in `log`; return why it ended without a result, or None."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if not (PROJECT_ROOT / part.script).exists():
        return f"{part.script}: no such file"
    began = time.monotonic()
    say(f"{part.name}: {part.command} (at most {part.minutes:g} minutes; {log})")
    with log.open("wb") as stream:
        # A session of its own: at the bound it ends with all its children.
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        running[part.name] = process
        try:
            code = process.wait(60 * part.minutes)
        except subprocess.TimeoutExpired:
            _end(process)
            say(f"{part.name}: not done after {part.minutes:g} minutes, ended")
            return f"not done after {part.minutes:g} minutes"
        finally:
            running.pop(part.name, None)
    say(f"{part.name}: exit code {code} after {format_duration(time.monotonic() - began)}")
    return None if code == 0 else f"exit code {code}: {_last_line(log)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process and its children, SIGKILL to those that are still there."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no output")
