"""Two commands at once on one folder: the second says so in one line and touches nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from observer.cli import main as observer
from observer.console.run import run_cli
from observer.memory.store import Store
from observer.paths import PROJECT_ROOT, RunPaths
from observer.runs.lock import held_folder, held_for_one_run
from tests.memory.test_diff import said
from tests.support.tiny_runs import write_tiny_run
from train_sft import main as train_sft

HOLDERS = {
    "run": "from observer.runs.lock import held_for_one_run\nheld = held_for_one_run(path)",
    "export": "from observer.runs.lock import held_folder\nheld = held_folder(path, 'wait')",
    "answers": "from observer.observe.observations_file import open_ledger\nheld = open_ledger(path, 'grade')",
    "memory": "from observer.memory.store import Store\nheld = Store(path)._transaction()",
}


@contextmanager
def held_by_another(kind: str, path: Path) -> Iterator[int]:
    """Another process has it; yields its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = "import sys, pathlib; path = pathlib.Path(sys.argv[1])\n"
    code += f"{HOLDERS[kind]}\nwith held: print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=PROJECT_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.kill()


def is_refused(command: Callable[[], int], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether it ends with that line and leaves the files below `folder` as they are."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code = run_cli(command, debug=False)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return code == 1 and line == f"error: {message}" and before == after


def test_a_second_training_is_refused(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_tiny_run(tmp_path, tiny_model)
    paths = RunPaths(tmp_path / "outputs" / "tiny", "tiny")
    with held_by_another("run", paths.lock) as pid:
        message = (
            f"{paths.root}: another run is at work here (process {pid}); wait for it, "
            "or give this one a folder of its own by --run-name"
        )
        assert is_refused(lambda: train_sft(["--config", str(config)]), message, paths.root, capsys)
    for _ in range(2):
        with held_for_one_run(paths.lock):  # what was killed holds nothing
            assert paths.lock.read_text() == f"{os.getpid()}\n"


def test_a_second_export_is_refused(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = ["export", str(tiny_model), "--out", str(out), "--types", "f16"]
    with held_by_another("export", out):
        message = f"{out}: another command is writing here; wait for it, or name another one with --out"
        assert is_refused(lambda: observer(command), message, out, capsys)
    with held_folder(out, ""):  # what was killed holds nothing
        pass


def test_a_second_writer_of_answers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "answers.jsonl"
    with held_by_another("answers", out):
        message = f"{out}: another run writes to it; wait for its end, or name another --out"
        assert is_refused(lambda: observer(["grade", "hi", "--out", str(out)]), message, out.parent, capsys)


def test_a_memory_that_another_program_writes_to_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.sqlite"
    Store(path).close()
    job = said("User WORKS_AT Siemens ongoing")
    with held_by_another("memory", path), Store(path) as store:
        assert store.known() == [], "reading goes on meanwhile"
    with Store(path) as store:  # the other was killed in the middle of its writing
        store.apply(job, "1")
        assert [fact.object for fact in store.known()] == ["Siemens"]
