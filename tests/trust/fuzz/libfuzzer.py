"""Runs libFuzzer on a target, keeps the smallest set of inputs that reach as much, and makes a fault's input small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.trust.fuzz.bounds import MAX_INPUT_BYTES, MAX_START_BYTES, bounds
from tests.trust.fuzz.targets import Target

HANG_S, RSS_MB = 60, 2_048
"""libFuzzer's own bounds, for what Python does not see."""
START_S = 240
"""More than a busy machine needs to import everything under atheris and to run what is kept."""
SHRINKING_S = 60.0
_MEMORY = Path("/dev/shm")
_STATUS = re.compile(r"cov: \d+ ft: (\d+) corp: (\d+)/")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


@dataclass(frozen=True)
class Fuzzed:
    """What a target came to. `faulty` are the inputs that libFuzzer wrote down, `output` ends with the traceback."""

    executions: int
    features: int
    kept: int
    faulty: list[Path]
    exit_code: int
    output: str


def fuzz(target: Target, seconds: int, folder: Path) -> Fuzzed:
    """Fuzz for this long, or to the first fault, from what earlier calls kept in the folder."""
    corpus, merged, faults = (folder / name for name in ("corpus", "merged", "faults"))
    for path in (corpus, merged, faults):
        path.mkdir(parents=True, exist_ok=True)
    for path in corpus.iterdir():  # large ones make every try slow, and are found again
        if path.stat().st_size > MAX_START_BYTES:
            path.unlink()
    seeds = folder / "seeds"
    command = [sys.executable, "-m", "tests.trust.fuzz.child", target.name, str(seeds), f"-max_len={MAX_INPUT_BYTES}"]
    command += [f"-timeout={HANG_S}", f"-rss_limit_mb={RSS_MB}", f"-artifact_prefix={faults}/"]
    search = [f"-max_total_time={seconds}", "-print_final_stats=1", "-len_control=20"]
    done = _run([*command, *search, str(corpus), str(seeds), str(faults)], seconds + START_S)
    if done.returncode == 0 and _run([*command, "-merge=1", str(merged), str(corpus)], START_S).returncode == 0:
        for path in corpus.iterdir():
            path.unlink()
        for path in merged.iterdir():
            path.rename(corpus / path.name)
    executed, status = _EXECUTED.findall(done.stdout), _STATUS.findall(done.stdout) or [("0", "0")]
    return Fuzzed(
        executions=int(executed[-1]) if executed else 0,
        features=int(status[-1][0]),
        kept=len(list(corpus.iterdir())),
        faulty=sorted(faults.iterdir()),
        exit_code=done.returncode,
        output=done.stdout,
    )


def _run(command: list[str], seconds: int) -> subprocess.CompletedProcess[str]:
    """Files of inputs are made and read by the thousand: in memory where the system has a place for that."""
    in_memory = {"TMPDIR": str(_MEMORY)} if _MEMORY.is_dir() else {}
    # `timeout` ends the children of the command too.
    return subprocess.run(
        ["timeout", "--kill-after=10", str(seconds), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**in_memory, **os.environ, "PYTHONHASHSEED": "0"},
    )


def error_of(run: Callable[[bytes], None], data: bytes) -> Exception | None:
    """What an input raises, within the bounds."""
    try:
        with bounds():
            run(data)
    except Exception as error:
        return error
    return None


def smallest(run: Callable[[bytes], None], data: bytes) -> bytes:
    """The input without what its error does not need: ever smaller pieces are left out while kind and place stay.

    libFuzzer's -minimize_crash starts a process for every piece, and ours take seconds to start: after ten minutes it
    had left 252 bytes of 847 where this leaves 4 in a tenth of a second.
    """
    kind, end, size = _kind(error_of(run, data)), time.monotonic() + SHRINKING_S, len(data) // 2
    while size:
        start = 0
        while start < len(data) and time.monotonic() < end:
            shorter = data[:start] + data[start + size :]
            if _kind(error_of(run, shorter)) == kind:
                data = shorter
            else:
                start += size
        size //= 2
    return data


def _kind(error: Exception | None) -> tuple[object, ...]:
    """The type of an error and the line that raised it."""
    frame = error and error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return (type(error), frame and (frame.tb_frame.f_code.co_filename, frame.tb_lineno))
