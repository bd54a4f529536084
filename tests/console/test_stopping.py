"""Ctrl-C and SIGTERM end every command in one line, also where Python loses an exception."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT
from observer.runs.manifest import Manifest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
each_signal = pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.name)


def send(kind: int) -> None:
    os.kill(os.getpid(), kind)
    time.sleep(0.01)  # a step of the program, before which the handler is called


def wait() -> int:
    time.sleep(20)
    return 0


def ends_in_one_line(main: Callable[[], int], kind: signal.Signals, capsys: pytest.CaptureFixture[str]) -> bool:
    handlers = [signal.getsignal(one) for one in CODES]
    code = run_cli(main, debug=False)
    assert handlers == [signal.getsignal(one) for one in CODES]
    lines = capsys.readouterr().err.strip().splitlines()
    return code == CODES[kind] and len(lines) == 1 and "the same command does the rest" in lines[0]


@each_signal
def test_a_signal_ends_a_command_in_one_line(kind: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_in_one_line(lambda: send(kind) or wait(), kind, capsys)


@each_signal
def test_a_signal_in_a_destructor_is_raised_again(kind: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    class Closing:
        def __del__(self) -> None:
            send(kind)

    def main() -> int:
        Closing()
        return wait()

    assert ends_in_one_line(main, kind, capsys)


@each_signal
def test_a_signal_that_an_import_turns_into_another_error_is_still_one(
    kind: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        try:
            return send(kind) or wait()
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    assert ends_in_one_line(main, kind, capsys)


@each_signal
def test_a_signal_that_a_library_swallows_ends_the_run_before_the_next_stage(
    kind: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def main() -> int:
        with contextlib.suppress(BaseException):
            send(kind)
        Manifest(tmp_path / "manifest.json").run("merge", {}, [], lambda: done.append("merge"))
        return 0

    assert ends_in_one_line(main, kind, capsys)
    assert not done


def test_a_signal_during_the_evaluation_after_the_last_step_stops_the_run_as_well(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from observer.training.checkpoints import StopCallback
    from observer.training.multiprocess.processes import Launch

    args, stop = TrainingArguments(str(tmp_path), use_cpu=True), StopCallback(Launch())
    with stop.listening():
        stop.on_step_end(args, TrainerState(max_steps=3, global_step=3), TrainerControl())
        send(signal.SIGTERM)
    assert not stop.has_stopped
    stop.settle(args)
    assert stop.has_stopped and stop.asked_by == signal.SIGTERM


def test_faults_are_told_as_before_once_a_command_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ObserverError("x.jsonl:1: not JSON")

    assert run_cli(lambda: send(signal.SIGINT) or wait(), debug=False) == 130
    capsys.readouterr()
    assert run_cli(fail, debug=False) == 1
    assert capsys.readouterr().err == "error: x.jsonl:1: not JSON\n"


def test_what_a_shell_ignores_for_a_job_in_the_background_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_cli(lambda: send(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can tell a child of its parent's end")
def test_the_quantizer_s_process_ends_with_the_run_that_was_killed(tmp_path: Path) -> None:
    source = tmp_path / "never-written.gguf"
    os.mkfifo(source)  # who reads it waits
    code = (
        "import sys; from observer.export.quantize.quantize import Job, run_job\n"
        "run_job(Job(sys.argv[1], sys.argv[1] + '.out', 7, None, {}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(source)], cwd=PROJECT_ROOT)
    try:
        child = wait_for_child(parent.pid)
        with source.open("wb"):  # opens once the child reads: it has come to llama.cpp
            parent.kill()
            parent.wait()
            deadline = time.monotonic() + 600
            while is_alive(child) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not is_alive(child)
    finally:
        parent.kill()


def wait_for_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()):
        time.sleep(0.01)
    return int(found[0])


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
