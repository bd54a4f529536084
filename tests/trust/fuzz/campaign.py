"""Runs targets one after the other in child processes, and keeps count of what they tried and found."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from observer.files import write_text
from observer.paths import python_path
from tests.trust.fuzz.bounds import MAX_INPUT_BYTES, MAX_START_BYTES

HANG_S, RSS_MB = 60, 2_048
"""libFuzzer's own bounds, for what Python does not see."""
SHARED_MEMORY = Path("/dev/shm")
_STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
_LEFT_BEHIND = ("timeout-", "crash-", "oom-", "leak-", "slow-unit-")


@dataclass
class Finding:
    """`file` is the input; `replays` says whether it fails outside of the fuzzer too, within the real bounds."""

    target: str
    signature: str
    file: str
    replays: bool = False

    @property
    def command(self) -> str:
        return f"python -m tests.trust.fuzz.fuzz --replay {self.target} {self.file}"


@dataclass
class Count:
    """What one target came to. `features` and `corpus` are libFuzzer's last word."""

    target: str
    executions: int = 0
    seconds: float = 0.0
    features: int = 0
    corpus: int = 0
    findings: list[Finding] = field(default_factory=list)


Watch = Callable[[Count, float], None]
"""Called now and then with the count so far and the seconds left to the target."""


def fuzz_target(name: str, seconds: float, folder: Path, watch: Watch, counts: list[Count]) -> None:
    """Fuzz for this long, starting anew after a crash, and add the count. Ctrl-C keeps what was done."""
    count = Count(name)
    counts.append(count)
    corpus, findings = folder / name / "corpus", folder / name / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    for kept in corpus.iterdir():  # large ones make every try slow, and are found again
        if kept.stat().st_size > MAX_START_BYTES:
            kept.unlink()
    start = time.monotonic()
    while (left_s := seconds - count.seconds) >= 1:
        try:
            _run_child(count, left_s, corpus, findings, lambda: watch(count, seconds - (time.monotonic() - start)))
        finally:
            count.seconds = time.monotonic() - start
            _collect(count, findings)


def replay(name: str, file: Path) -> str | None:
    """What an input does in a process of its own, without the fuzzer; None when nothing goes wrong."""
    command = [sys.executable, "-m", "tests.trust.fuzz.fuzz", "--replay", name, str(file)]
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    return None if done.returncode == 0 else (done.stdout + done.stderr)[-4_000:]


def _run_child(count: Count, seconds: float, corpus: Path, findings: Path, watch: Callable[[], None]) -> None:
    before = count.executions
    known = json.dumps([finding.signature for finding in count.findings])
    command = [sys.executable, "-m", "tests.trust.fuzz.child", count.target]
    command += ["--findings", str(findings), "--known", known, str(corpus)]
    command += [f"-max_total_time={max(1, round(seconds))}", f"-max_len={MAX_INPUT_BYTES}", f"-timeout={HANG_S}"]
    command += [f"-rss_limit_mb={RSS_MB}", f"-artifact_prefix={findings}/", "-print_final_stats=1", "-len_control=20"]
    with _child(command, seconds) as lines:
        for line in lines:
            if status := _STATUS.search(line):
                count.executions = before + int(status[1])
                count.features, count.corpus = int(status[3]), int(status[4])
            elif executed := _EXECUTED.search(line):
                count.executions = before + int(executed[1])
            elif line.startswith("FINDING "):
                found = json.loads(line.removeprefix("FINDING "))
                count.findings.append(Finding(count.target, found["signature"], str(findings / found["file"])))
            watch()


def in_memory() -> dict[str, str]:
    """Files of inputs are made and read by the thousand: in memory where the system has a place for that."""
    return {"TMPDIR": str(SHARED_MEMORY)} if SHARED_MEMORY.is_dir() else {}


@contextlib.contextmanager
def _child(command: list[str], seconds: float) -> Iterator[Iterator[str]]:
    """The lines that a child writes. It goes when the caller does, and when it outstays its time by far."""
    environment = {**in_memory(), **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    overdue = threading.Timer(seconds + 4 * HANG_S, process.kill)
    overdue.start()
    try:
        assert process.stdout is not None
        yield iter(process.stdout)
        process.wait()
    finally:
        overdue.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _collect(count: Count, findings: Path) -> None:
    """What libFuzzer left behind becomes a finding: its place is told by a replay."""
    for path in sorted(findings.iterdir()):
        if path.name.startswith(_LEFT_BEHIND):
            what = path.name.partition("-")[0]
            renamed = path.with_name(f"{path.name[-12:]}.input")
            path.rename(renamed)
            text = replay(count.target, renamed)
            if what == "slow" and text is None:
                renamed.unlink()
                continue
            write_text(renamed.with_suffix(".txt"), text or f"{what}: only under the fuzzer")
            signature = (text or "").strip().partition("\n")[0] or f"{what}, only under the fuzzer"
            if signature not in {finding.signature for finding in count.findings}:
                count.findings.append(Finding(count.target, signature, str(renamed), replays=text is not None))
