"""`--ray`: a corpus on a cluster of two workers, and what it survives: every row exactly once, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from observer.cli import main
from observer.errors import ObserverError
from observer.observation import Asked, Exchange, Observation
from observer.observe.bulk.cluster import Size, _fit, _folder
from observer.observe.bulk.dataset import BulkOptions
from observer.observe.bulk.parts import Done, PartsFolder, good_rows, parts_of
from observer.observe.bulk.worker import Worker, absolute, identify
from observer.observe.observations_file import to_line
from observer.observe.tally import CONTEXT_CUT
from observer.paths import PROJECT_ROOT
from observer.runs.lock import held_folder
from observer.schema import Turn
from tests.observe.test_observe_command import MODEL, write_chats
from tests.support.observing_server import ObservingServer

N_ROWS, ROWS_PER_PART = 60, 4
IDS = [f"row-{number}" for number in range(N_ROWS)]
RAY = ["--ray", "--workers", "2", "--threads", "1", "--rows-per-part", str(ROWS_PER_PART)]
PATIENCE_S = 600
"""For what comes in seconds, but for a machine with other things to do."""
PATIENT = [*MODEL, "--timeout", str(PATIENCE_S)]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster with room for two workers; its processes are ours."""
    pytest.importorskip("ray.data", reason="pip install -e '.[bulk]'")
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
    with _folder() as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_TMPDIR", folder)  # it writes the address there, whatever `temp_dir` is
            machines = Cluster(initialize_head=True, head_node_args=machine)
        yield str(machines.address)
        machines.shutdown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObservingServer]:
    with ObservingServer(delay_s=0.1).running() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        yield server


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chats.jsonl", N_ROWS)


def read_parts(folder: Path) -> list[Observation]:
    """What `cat part-*.jsonl` gives."""
    return [Observation.model_validate_json(line) for p in sorted(folder.glob("part-*.jsonl")) for line in p.open("rb")]


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def n_parts(folder: Path) -> int:
    return len(list(folder.glob("part-*.jsonl")))


def family(pid: int) -> dict[psutil.Process, str]:
    """The command line of every process below this one."""
    found = dict[psutil.Process, str]()
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            found[process] = " ".join(process.cmdline())
    return found


@pytest.mark.slow
def test_a_whole_run_is_what_the_plain_command_writes(
    cluster: str, nano_gguf: Path, tmp_path: Path, capsys: Captured
) -> None:
    chats, out = write_chats(tmp_path / "chats.jsonl", 10), tmp_path / "parts"
    with chats.open("a") as stream:
        stream.write(
            'no row\n{"user_message": "my sister Ana lives in Porto"}\n{"user_message": "  "}\n'
            "USER: I work at Bosch\nASSISTANT: Good.\nUSER: and I have a dog\n"
        )
    command = ["observe", str(chats), "--every-turn", "--model", str(nano_gguf)]
    assert main([*command, "--threads", "1"]) == 1
    plain = capsys.readouterr()
    assert main([*command, *RAY, "--ray-address", cluster, "--out", str(out)]) == 1
    bulk = capsys.readouterr()
    for number, reason in ((11, "not JSON"), (13, "empty user turn")):
        line = next(line for line in plain.err.splitlines() if f"{chats}:{number}: {reason}" in line)
        assert bulk.err.count(line) == 1
    expected = [Observation.model_validate_json(line) for line in plain.out.splitlines()]
    words, numbers = words_and_numbers(read_parts(out))
    expected_words, expected_numbers = words_and_numbers(expected)
    assert words == expected_words and numbers == pytest.approx(expected_numbers, abs=0.05)
    assert len(expected) == 13 and n_parts(out) == 4
    assert "13 observed" in bulk.err and "2 with a fault" in bulk.err
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    manifest = json.loads((out / "manifest.json").read_text())
    digest = hashlib.sha256(nano_gguf.read_bytes()).hexdigest()
    assert manifest["is_whole"] and manifest["model"]["identity"] == f"sha256:{digest}"
    assert (manifest["rows"], manifest["parts"], manifest["bad_rows"]) == (13, 4, 2)


def words_and_numbers(observations: list[Observation]) -> tuple[list[Any], list[float]]:
    """What must be the same, and probabilities: batches of other sizes sum in another order."""
    numbers: list[float] = []
    lines = [one.model_dump_json() for one in observations]
    words = [json.loads(line, parse_float=lambda text: numbers.append(float(text))) for line in lines]
    return words, numbers


@pytest.mark.slow
def test_a_worker_killed_in_mid_run_loses_and_repeats_nothing(
    cluster: str, server: ObservingServer, corpus: Path, tmp_path: Path
) -> None:
    out, killed = tmp_path / "parts", list[int]()

    def kill() -> None:
        try:
            wait_until(lambda: server.n_waiting == 2 * ROWS_PER_PART)  # a part each, asked at once
            server.let_waiting_go()
            wait_until(lambda: n_parts(out) == 2 and server.n_waiting == 2 * ROWS_PER_PART)
            victim = next(process for process, name in family(os.getpid()).items() if "MapWorker" in name)
            victim.kill()
            killed.append(victim.pid)
        finally:
            server.let_all_go()

    with server.held():
        killer = threading.Thread(target=kill)
        killer.start()
        assert main(["grade", str(corpus), *RAY, "--ray-address", cluster, "--out", str(out), *PATIENT]) == 0
        killer.join()
    assert killed and [one.id for one in read_parts(out)] == IDS
    assert sum(server.n_asked.values()) > N_ROWS, "the killed worker's part was to be asked again"


@pytest.mark.slow
def test_a_killed_run_goes_on_and_leaves_finished_parts_and_no_process(
    cluster: str, server: ObservingServer, corpus: Path, tmp_path: Path, capsys: Captured
) -> None:
    out, command = tmp_path / "parts", ["grade", str(corpus), *RAY, "--out", str(tmp_path / "parts"), *PATIENT]
    with tempfile.TemporaryDirectory(prefix="bulk-", dir="/tmp") as folder:
        with server.held(after=4 * ROWS_PER_PART):  # of which two workers have at most three answers more in hand each
            run = subprocess.Popen(
                [sys.executable, "-m", "observer.cli", *command], cwd=PROJECT_ROOT, env=os.environ | {"TMPDIR": folder}
            )
            wait_until(lambda: n_parts(out) >= 3)
            below = family(run.pid)
            agents = [process for process, name in below.items() if "gent" in name]  # they take a minute to notice
            run.kill()
            run.wait()
        assert agents and not psutil.wait_procs(below.keys() - agents, timeout=PATIENCE_S)[1], "all were to end with it"
        for process in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    recorded = PartsFolder(out).done
    assert 0 < len(recorded) < N_ROWS / ROWS_PER_PART
    before = {number: PartsFolder(out).file(number).stat() for number in recorded}
    n_asked = sum(server.n_asked.values())
    assert main([*command, "--ray-address", cluster]) == 0
    assert [one.id for one in read_parts(out)] == IDS
    after = {number: PartsFolder(out).file(number).stat() for number in recorded}
    assert all((was.st_ino, was.st_mtime_ns) == (after[n].st_ino, after[n].st_mtime_ns) for n, was in before.items())
    assert sum(server.n_asked.values()) - n_asked == N_ROWS - sum(done.rows for done in recorded.values())
    assert f"{ROWS_PER_PART * len(recorded)} were in {out} before" in capsys.readouterr().err
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_ctrl_c_is_one_line_that_says_how_to_go_on(
    cluster: str, server: ObservingServer, corpus: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "parts"

    def interrupt() -> None:
        try:
            wait_until(lambda: n_parts(out) >= 3 and server.n_waiting > 0)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # the answers wait until it has come
        finally:
            server.let_all_go()

    with server.held(after=4 * ROWS_PER_PART):
        threading.Thread(target=interrupt).start()
        assert main(["grade", str(corpus), *RAY, "--ray-address", cluster, "--out", str(out), *PATIENT]) == 130
    printed = capsys.readouterr()
    n_rows = sum(done.rows for done in PartsFolder(out).done.values())
    assert f"interrupted after {n_rows}: {out} is whole, the same command goes on there" in printed.err
    assert "Traceback" not in printed.err and not printed.out


@pytest.mark.slow
def test_two_runs_at_once_meet_nowhere_and_leave_nothing_behind(
    server: ObservingServer, corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray.data", reason="pip install -e '.[bulk]'")
    home = tmp_path / "home"
    with tempfile.TemporaryDirectory(prefix="bulk-", dir="/tmp") as shared:
        taken = [home / ".ray", Path(shared) / "ray"]  # where Ray itself would write: here somebody else's
        for path in taken:
            path.parent.mkdir(exist_ok=True)
            path.write_text("not ours")
        environment = os.environ | {"TMPDIR": shared, "HOME": str(home)}
        outs = [tmp_path / "one", tmp_path / "other"]
        runs = [
            subprocess.Popen(
                [sys.executable, "-m", "observer.cli", "grade", str(corpus), *RAY, "--out", str(out), *MODEL],
                cwd=PROJECT_ROOT, env=environment, stderr=subprocess.PIPE, text=True,
            )
            for out in outs
        ]  # fmt: skip
        told = [run.communicate()[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], told
        assert [[one.id for one in read_parts(out)] for out in outs] == [IDS, IDS]
        assert [list(path.parent.iterdir()) for path in taken] == [[path] for path in taken]


def write_finished(out: Path, corpus: Path, task: Asked = "grade", spec: str = "ollama:watcher") -> PartsFolder:
    """The parts of a finished run, made without a cluster."""
    out.mkdir()
    folder = PartsFolder(out)
    reader = BulkOptions(task, (str(corpus),), out, spec).open_reader()
    for part in parts_of(good_rows(reader.rows()), ROWS_PER_PART):
        lines = b"".join(to_line(Observation(task=task, model="watcher", id=row.id)) for row in part.rows)
        output = hashlib.sha256(lines).hexdigest()
        folder.write(Done(part.number, len(part.rows), task, spec, "watcher", part.sha256, output), lines)
    return folder


def test_a_finished_run_is_left_as_it_is_and_starts_no_cluster(corpus: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = write_finished(tmp_path / "parts", corpus)
    command = ["grade", str(corpus), *RAY, "--out", str(folder.path), *MODEL]
    assert main(command) == 0
    assert json.loads((folder.path / "manifest.json").read_text())["is_whole"], "a kill may come before it is said"
    before = {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}  # a whole stat compares seconds
    assert main(command) == 0
    assert f"0 graded; {N_ROWS} were in {folder.path} before" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.path.iterdir()} == before


def test_a_fault_of_an_earlier_run_is_told_with_what_to_do(corpus: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = write_finished(tmp_path / "parts", corpus)
    faults = [(f"{corpus}:9", "too long; raise num_ctx")]
    folder.write(dataclasses.replace(folder.done[2], faults=faults), folder.file(2).read_bytes())
    assert main(["grade", str(corpus), *RAY, "--out", str(folder.path), *MODEL]) == 1
    advice = f"(kept in {folder.path}; delete part-00002.jsonl or name another --out to ask again)"
    assert f"{corpus}:9: too long; raise num_ctx {advice}" in capsys.readouterr().err


def test_parts_make_a_file_that_a_memory_is_made_from_without_a_model(corpus: Path, tmp_path: Path) -> None:
    folder, out = write_finished(tmp_path / "parts", corpus, "observe"), tmp_path / "observations.jsonl"
    out.write_bytes(b"".join(folder.file(number).read_bytes() for number in sorted(folder.done)))
    memory = tmp_path / "memory.sqlite"
    assert main(["observe", str(corpus), "--out", str(out), "--memory", str(memory), *MODEL]) == 0
    assert memory.exists() and len(out.read_bytes().splitlines()) == N_ROWS


def test_parts_of_another_model_task_or_input_are_refused(corpus: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = write_finished(tmp_path / "parts", corpus)
    changed = corpus.read_text().replace('thanks 1"', 'thanks, one"').replace('thanks 5"', 'thanks, five"')
    edited = tmp_path / "edited.jsonl"
    edited.write_text(changed)
    ray = [*RAY, "--out", str(folder.path)]
    for command, reasons in (
        (["grade", str(corpus), *ray, "--model", "ollama:other"], ["holds answers of watcher", "or another --out"]),
        (["extract", str(corpus), *ray, *MODEL], ["holds answers of `observer grade`"]),
        (["grade", str(edited), *ray, *MODEL], ["part-00000.jsonl: the input has other rows", "part-00001.jsonl"]),
        (["grade", str(corpus), *ray, *MODEL, "--rows-per-part", "5"], ["--rows-per-part"]),
    ):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert all(reason in err for reason in reasons), err
    folder.file(3).write_bytes(folder.file(3).read_bytes().replace(b"row-12", b"row-99"))
    assert main(["grade", str(corpus), *ray, *MODEL]) == 1
    assert f"{folder.file(3)}: changed since it was written; delete it" in capsys.readouterr().err


def test_a_folder_of_something_else_and_one_in_use_are_refused(corpus: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "parts"
    out.mkdir()
    with held_folder(out, "wait"):
        assert main(["grade", str(corpus), *RAY, "--out", str(out), *MODEL]) == 1
    assert "another command is writing here" in capsys.readouterr().err
    (out / "part-00000.jsonl").write_text("mine\n")
    assert main(["grade", str(corpus), *RAY, "--out", str(out), *MODEL]) == 1
    assert "no parts.jsonl tells what made it" in capsys.readouterr().err
    assert (out / "part-00000.jsonl").read_text() == "mine\n"


def test_a_torn_record_is_dropped_and_its_part_made_anew(corpus: Path, tmp_path: Path) -> None:
    folder = write_finished(tmp_path / "parts", corpus)
    whole = folder.ledger.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for size in range(last, len(whole), 40):
        folder.ledger.write_bytes(whole[:size])
        assert sorted(PartsFolder(folder.path).done) == sorted(folder.done)[:-1]
        assert folder.ledger.read_bytes() == whole[:last]
    folder.ledger.write_bytes(b'{"part": 1}\n')
    with pytest.raises(ObserverError, match=r"parts.jsonl:1: not a record of ours"):
        PartsFolder(folder.path)


def test_a_part_that_was_deleted_is_not_there(corpus: Path, tmp_path: Path) -> None:
    folder = write_finished(tmp_path / "parts", corpus)
    folder.file(3).unlink()
    assert folder.done.keys() - PartsFolder(folder.path).done.keys() == {3}


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        (["chats.jsonl", "--ray", "--memory", "m.sqlite"], ["name a folder for the parts", "--memory: "]),
        (["-", "I live in Lima", "--ray", "--out", "o"], ["-: --ray reads files", "I live in Lima: --ray reads files"]),
        (["I moved to St. Louis", "--ray", "--out", "o"], ["I moved to St. Louis: --ray reads files"]),
        (["pipe", "--ray", "--out", "o"], ["pipe: --ray reads files"]),
        (["none.jsonl", "--ray", "--out", "o"], ["none.jsonl: no such file"]),
        (["hi", "--workers", "2", "--ray-address", "auto"], ["--workers: goes with", "--ray-address: goes with"]),
    ],
)
def test_what_cannot_be_is_told_at_once(
    arguments: list[str], reasons: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert main(["observe", *arguments, *MODEL]) == 1
    err = capsys.readouterr().err
    assert all(reason in err for reason in reasons), err


def test_a_missing_ray_is_one_line(corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["grade", str(corpus), *RAY, "--out", str(corpus.parent / "parts"), *MODEL]) == 1
    assert capsys.readouterr().err == "error: --ray: Ray Data is not installed; pip install -e '.[bulk]'\n"


def test_workers_are_no_more_than_the_machines_have_room_for() -> None:
    assert _fit([8, 8], None, None) == Size(4, 4)
    assert _fit([1, 1], None, None) == Size(2, 1)
    assert _fit([16, 2], 2, None) == Size(2, 8)
    assert _fit([1], None, None) == Size(1, 1)
    with pytest.raises(ObserverError, match="room for 1 of 2 CPUs"):
        _fit([2, 1], 2, 2)


def test_rays_sockets_fit_below_a_temporary_folder_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    is_below = set[bool]()
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        for length in range(len(short) + 2, 80):
            base = os.path.join(short, "x" * (length - len(short) - 1))
            os.mkdir(base)
            monkeypatch.setattr(tempfile, "tempdir", base)
            with _folder() as folder:
                is_below.add(folder.startswith(base))
                socket = f"{folder}/session_2026-11-28_07-10-24_904877_4194304/sockets/plasma_store"
                assert len(socket) <= 103, base  # macOS; Linux takes 107
            assert not os.path.exists(folder)
    assert is_below == {True, False}


def test_a_part_says_of_how_many_rows_the_context_was_cut(nano_gguf: Path) -> None:
    context = [Turn(role="user", content="we walked by the harbour " * 40) for _ in range(30)]
    exchanges = [Exchange(user_message="thanks", context=context), Exchange(user_message="thanks")]
    worker = Worker(str(nano_gguf), identify(str(nano_gguf)), "grade", {"n_threads": 1, "n_ctx": 700}, {})
    rows = json.dumps([[f"x:{n}", exchange.model_dump_json()] for n, exchange in enumerate(exchanges)])
    found = worker({"part": 0, "input": "", "rows": rows})
    done = Done.from_json(found["done"])
    assert (found["stop"], done.faults, done.remarks) == ("", [], {CONTEXT_CUT: 1})
    assert done.output == hashlib.sha256(found["lines"]).hexdigest()


def test_a_model_is_found_from_any_folder() -> None:
    here = Path.cwd()
    assert absolute("ollama:watcher") == "ollama:watcher"
    assert absolute("hf:models/x") == f"hf:{here / 'models/x'}"
    assert absolute("outputs/nano") == str(here / "outputs/nano")
