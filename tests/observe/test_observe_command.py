"""`observer grade`, `extract` and `observe` as a person meets them: rows in, observations out, each exactly once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer.cli import main
from observer.client import Observer
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.memory.store import Store
from observer.observation import Exchange, Observation
from observer.observe.observations_file import open_ledger
from observer.observe.printing import print_observation
from observer.observe.run import default_model
from observer.observe.streaming import arriving, batches
from observer.paths import PROJECT_ROOT
from observer.prompts import Task
from observer.schema import Label
from tests.memory.test_diff import said
from tests.support.observing_server import ObservingServer

MODEL = ["--model", "ollama:watcher"]
CITIES = ("Lisbon", "Porto", "Kyoto", "Bergen", "Lima")
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObservingServer]:
    with ObservingServer().running() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        yield server


def write_chats(path: Path, n_rows: int = 5) -> Path:
    """Rows with ids and days: a move every third one, thanks between."""
    lines = []
    for number in range(n_rows):
        text = f"I live in {CITIES[number % len(CITIES)]}" if number % 3 == 0 else f"thanks {number}"
        at = datetime(2026, 1, 1, tzinfo=UTC).replace(hour=number % 24, day=1 + number // 24)
        lines.append(json.dumps({"user_message": text, "id": f"row-{number}", "at": at.isoformat()}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[Observation]:
    return [Observation.model_validate_json(line) for line in path.read_bytes().splitlines()]


def observer(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "observer.cli", *arguments, *MODEL]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=PROJECT_ROOT, **(streams | options))  # type: ignore[call-overload]


def wait_for_lines(path: Path, n_lines: int) -> None:
    for _ in range(3000):
        if path.exists() and path.read_bytes().count(b"\n") >= n_lines:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path}: {n_lines} lines never came")


def test_text_gives_one_observation_that_reads_back(server: ObservingServer, capsys: Captured) -> None:
    assert main(["observe", "I live in Lisbon", "--at", "2026-05-04", *MODEL]) == 0
    printed = capsys.readouterr()
    seen = Observation.model_validate_json(printed.out)
    assert seen.grade and seen.grade.label is Label.IMPORTANT
    assert [(r.predicate, r.object, r.stated_by) for r in seen.relationships] == [("LIVES_IN", "Lisbon", "user")]
    assert seen.at == datetime(2026, 5, 4)
    assert "model: ollama:watcher" in printed.err and "1 observed" in printed.err


def test_bytes_that_are_no_text_and_pipes_that_are_no_files(server: ObservingServer, tmp_path: Path) -> None:
    assert observe_in_shell("observer grade $'I live in \\xff'").grade
    assert observe_in_shell("""observer grade <(echo '{"user_message": "thanks", "id": "piped"}')""").id == "piped"


def observe_in_shell(command: str) -> Observation:
    command = command.replace("observer", f"{sys.executable} -m observer.cli", 1) + f" {' '.join(MODEL)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=PROJECT_ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return Observation.model_validate_json(done.stdout)


def test_context_that_the_model_has_no_room_for_is_counted(nano_gguf: Path, tmp_path: Path, capsys: Captured) -> None:
    """And a long talk is not refused for its length: what counts is the exchange."""
    context = [{"role": "user", "content": f"{n}: " + "we walked by the harbour " * 40} for n in range(30)]
    rows = [{"user_message": "thanks", "context": context}, {"user_message": "thanks"}, {"user_message": "hi " * 9000}]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["grade", str(path), "--model", str(nano_gguf), "--threads", "1", "--n-ctx", "700"]) == 1
    printed = capsys.readouterr()
    long, short = (Observation.model_validate_json(line) for line in printed.out.splitlines())
    assert 20 < long.context_cut <= 30 and short.context_cut == 0
    assert "; 1 without their oldest context, for which the model had no room" in printed.err
    assert "chats.jsonl:3: 27,005 characters; at most 20,000 are sent (--max-characters)" in printed.err


def test_text_is_as_long_as_a_row_may_be(server: ObservingServer, capsys: Captured) -> None:
    assert main(["grade", "I live in Lisbon", "thanks", "--max-characters", "12", *MODEL]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert "text: 22 characters; at most 12 are sent (--max-characters)" in printed.err


@pytest.mark.parametrize(
    ("more", "told"),
    [(MODEL, "set num_ctx in the model's Modelfile"), (["--ray", "--out", "parts"], "--n-ctx: goes without --ray")],
)
def test_an_option_of_a_models_context_says_where_there_is_none(
    more: list[str], told: str, server: ObservingServer, capsys: Captured
) -> None:
    assert main(["grade", "thanks", "--n-ctx", "700", *more]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("timeout", ["0", "-5", "nan", "soon"])
def test_a_timeout_is_a_number_of_seconds(timeout: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        main(["grade", "thanks", f"--timeout={timeout}", *MODEL])
    assert end.value.code == 2 and "argument --timeout: " in capsys.readouterr().err


def test_each_verb_asks_what_it_says(server: ObservingServer, capsys: Captured) -> None:
    texts = ["I live in Lisbon", "thanks"]
    assert main(["grade", *texts, *MODEL]) == 0
    grades = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["task"], row["grade"]["label"]) for row in grades] == [("grade", "IMPORTANT"), ("grade", "DISCARD")]
    assert server.n_asked == {Task.GRADE: 2, Task.EXTRACT: 0}
    assert main(["extract", *texts, *MODEL]) == 0
    extracted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("grade" in row, len(row.get("relationships", []))) for row in extracted] == [(False, 1), (False, 0)]
    assert server.n_asked == {Task.GRADE: 2, Task.EXTRACT: 2}
    assert main(["observe", *texts, *MODEL]) == 0
    assert server.n_asked == {Task.GRADE: 4, Task.EXTRACT: 3}


def test_rows_of_every_kind_in_one_file_and_a_line_for_each_bad_one(
    server: ObservingServer, tmp_path: Path, capsys: Captured
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},'
        ' {"role": "user", "content": "I live in Porto"}], "id": "chat", "mood": "good"}\n'
        '{"user_message": "I live in Lima", "assistant_message": "Nice."}\n'
        "no row at all\n"
        '{"user_message": "thanks", "id": "late", "at": "tomorrow"}\n'
        '{"user_message": "  "}\n'
        "USER: I live in Kyoto\nASSISTANT: Oh!\n",
        encoding="utf-8",
    )
    assert main(["extract", str(chats), *MODEL]) == 1
    printed = capsys.readouterr()
    seen = [Observation.model_validate_json(line) for line in printed.out.splitlines()]
    assert [one.relationships[0].object for one in seen] == ["Porto", "Lima", "Kyoto"]
    assert [str(one.id).partition("@")[0] for one in seen] == ["chat", "chats.jsonl:2", "chats.jsonl:6"]
    for number, reason in ((3, "not JSON"), (4, "at: "), (5, "empty user turn")):
        assert f"{chats}:{number}: {reason}" in printed.err
    assert (
        "3 extracted" in printed.err and "3 with a fault" in printed.err and "fields not used: mood (1)" in printed.err
    )


def test_every_turn_of_a_conversation_has_its_own_context(
    server: ObservingServer, tmp_path: Path, capsys: Captured
) -> None:
    chat = tmp_path / "chat.txt"
    chat.write_text("USER: I live in Lisbon\nASSISTANT: Nice.\nUSER: thanks\n")
    assert main(["grade", str(chat), "--every-turn", *MODEL]) == 0
    labels = [Observation.model_validate_json(line).grade for line in capsys.readouterr().out.splitlines()]
    assert [grade and grade.label for grade in labels] == [Label.IMPORTANT, Label.DISCARD]


def test_the_same_command_again_asks_nothing_and_ends_alike(
    server: ObservingServer, tmp_path: Path, capsys: Captured
) -> None:
    chats, out = write_chats(tmp_path / "chats.jsonl"), tmp_path / "out.jsonl"
    with chats.open("a") as stream:
        stream.write("bad\n")
    command = ["observe", str(chats), "--out", str(out), *MODEL]
    assert main(command) == 1
    assert [one.id for one in read(out)] == [f"row-{number}" for number in range(5)]
    before, asked = out.read_bytes(), dict(server.n_asked)
    capsys.readouterr()
    assert main(command) == 1
    assert (out.read_bytes(), server.n_asked) == (before, asked)
    assert "0 observed; 5 were in" in capsys.readouterr().err


def test_a_fault_is_kept_until_its_line_is_deleted(server: ObservingServer, tmp_path: Path, capsys: Captured) -> None:
    chats, out = write_chats(tmp_path / "chats.jsonl", 1), tmp_path / "out.jsonl"
    command = ["grade", str(chats), "--out", str(out), *MODEL]
    out.write_text('{"task":"grade","model":"watcher","id":"row-0","fault":"too long; raise num_ctx"}\n')
    assert main(command) == 1
    advice = f"(kept in {out}; delete its line or name another --out to ask again)"
    assert f"{chats}:1: too long; raise num_ctx {advice}" in capsys.readouterr().err
    out.write_bytes(b"")
    assert main(command) == 0


def test_a_torn_last_line_is_mended(server: ObservingServer, tmp_path: Path) -> None:
    chats, out = write_chats(tmp_path / "chats.jsonl"), tmp_path / "out.jsonl"
    command = ["observe", str(chats), "--out", str(out), *MODEL]
    assert main(command) == 0
    whole = out.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for size in range(last, len(whole)):
        out.write_bytes(whole[:size])
        with open_ledger(out, "observe") as ledger:
            assert len(ledger.done) == 4
        assert out.read_bytes() == whole[:last]
    assert main(command) == 0
    assert out.read_bytes() == whole


def test_rows_that_were_added_or_edited_are_asked_and_no_others(server: ObservingServer, tmp_path: Path) -> None:
    chats, out = tmp_path / "chats.jsonl", tmp_path / "out.jsonl"
    command = ["grade", str(chats), "--out", str(out), *MODEL]
    chats.write_text('{"user_message": "one"}\n{"user_message": "two"}\n')
    assert main(command) == 0
    chats.write_text('{"user_message": "one"}\n{"user_message": "two, edited"}\n{"user_message": "three"}\n')
    assert main(command) == 0
    assert server.n_asked[Task.GRADE] == 4
    assert len({one.id for one in read(out)}) == len(read(out)) == 4


def test_an_id_that_stands_for_another_text_is_another_row(
    server: ObservingServer, tmp_path: Path, capsys: Captured
) -> None:
    """Logs that count anew each day: nothing is passed over, in the file and in the memory."""
    days = []
    for day, city in enumerate(("Lisbon", "Porto"), 1):
        days.append(tmp_path / f"day{day}.jsonl")
        row = {"id": 1, "at": f"2026-01-0{day}", "user_message": f"I live in {city}"}
        days[-1].write_text(json.dumps(row) + "\n")
    out, memory, other = tmp_path / "o.jsonl", tmp_path / "m.sqlite", tmp_path / "other.jsonl"
    for day in (*days, *days):
        assert main(["observe", str(day), "--out", str(out), "--memory", str(memory), *MODEL]) == 0
    ids = [one.id for one in read(out)]
    assert ids[0] == "1" and len(ids) == 2 and str(ids[1]).startswith("1@")
    assert "1 were in" in capsys.readouterr().err.splitlines()[-1]
    with Store(memory) as store:
        assert [fact.object for fact in store.known()] == ["Porto"]

    apart = tmp_path / "apart.sqlite"
    for day, file in zip(days, (out, other), strict=True):
        assert main(["observe", str(day), "--out", str(file), "--memory", str(apart), *MODEL]) == 0
    assert [one.id for one in read(other)] == ["1"]
    with Store(apart) as store:
        assert [fact.object for fact in store.known()] == ["Porto"]


TIMED = [
    {"id": "stamp", "timestamp": "2024-01-01T00:00:00Z", "user_message": "I live in Lisbon"},
    {"id": "own", "created_at": 1700000000, "messages": [
        {"role": "user", "content": "I live in Porto", "timestamp": "2024-02-01T00:00:00Z"},
        {"role": "user", "content": "I live in Lima", "timestamp": 1709251200}]},
    {"id": "at", "at": 1700000000, "timestamp": 1, "user_message": "thanks"},
]  # fmt: skip


def test_times_under_other_names_are_told_before_anything_is_asked_and_read_when_named(
    server: ObservingServer, tmp_path: Path, capsys: Captured
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in TIMED))
    assert main(["observe", str(chats), "--every-turn", *MODEL]) == 0
    printed = capsys.readouterr()
    (warning,) = [line for line in printed.err.splitlines() if "--at-field" in line]
    assert warning.startswith(f"{chats}:1: no `at`, so that it counts as said now")
    assert warning.endswith("--at-field timestamp reads `timestamp`")
    assert printed.err.index("--at-field") < printed.err.index("model:")
    days = [Observation.model_validate_json(line).at for line in printed.out.splitlines()]
    assert [day and f"{day:%Y-%m-%d}" for day in days] == [None, "2024-02-01", "2024-03-01", "2023-11-14"]

    assert main(["observe", str(chats), "--at-field", "timestamp", *MODEL]) == 1
    printed = capsys.readouterr()
    assert f"{chats}:3: at: a time such as" in printed.err and "reads `timestamp`" not in printed.err
    days = [Observation.model_validate_json(line).at for line in printed.out.splitlines()]
    assert [day and f"{day:%Y-%m-%d}" for day in days] == ["2024-01-01", "2024-03-01"]
    assert main(["observe", str(chats), "--at", "2025-01-01", *MODEL]) == 0
    assert "--at-field" not in capsys.readouterr().err


def test_rows_with_one_id_are_told_apart(server: ObservingServer, tmp_path: Path) -> None:
    chats, out = tmp_path / "chats.jsonl", tmp_path / "out.jsonl"
    chats.write_text('{"user_message": "one", "id": "x"}\n{"user_message": "two", "id": "x"}\n')
    for _ in range(2):
        assert main(["grade", str(chats), "--out", str(out), *MODEL]) == 0
        assert [one.id for one in read(out)] == ["x", "x~2"]


def test_a_killed_run_goes_on_and_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_rows = 200
    chats, out = write_chats(tmp_path / "chats.jsonl", n_rows), tmp_path / "out.jsonl"
    memory = tmp_path / "memory.sqlite"
    command = ["observe", str(chats), "--out", str(out), "--memory", str(memory)]
    with ObservingServer(delay_s=0.001).running() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        for n_lines in (64, 128):
            with server.held(after=128):  # two questions a row at most: enough for 64 rows, too few for the rest
                run = observer(*command)
                wait_for_lines(out, n_lines)
                run.kill()
                run.communicate()
            assert len(read(out)) < n_rows
        assert main([*command, *MODEL]) == 0
    assert [one.id for one in read(out)] == [f"row-{number}" for number in range(n_rows)]
    uncut: list[Observation] = read(out)
    with Store(memory) as store, Store(tmp_path / "other.sqlite") as other:
        for one in uncut:
            other.apply(one, str(one.id))
        assert store.known(is_current=False) == other.known(is_current=False)
        assert [event.source for event in store.history()] == [event.source for event in other.history()]


def test_ctrl_c_leaves_a_whole_file_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats, out = write_chats(tmp_path / "chats.jsonl", 300), tmp_path / "out.jsonl"
    with ObservingServer(delay_s=0.01).running() as server, server.held(after=100):
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        run = observer("grade", str(chats), "--out", str(out))
        wait_for_lines(out, 64)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=600)
    assert run.returncode == 130 and "Traceback" not in err
    assert f"interrupted after {len(read(out))}: {out} is whole, the same command goes on there" in err


def test_a_server_that_fails_half_way_is_one_line_and_the_rest_is_kept(
    server: ObservingServer, tmp_path: Path, capsys: Captured
) -> None:
    chats, out = write_chats(tmp_path / "chats.jsonl", 100), tmp_path / "out.jsonl"
    server.fails_after = 90
    command = ["grade", str(chats), "--out", str(out), *MODEL]
    assert main(command) == 1
    assert f"{out} holds 64 answers; the same command goes on there" in capsys.readouterr().err
    server.fails_after = None
    assert main(command) == 0
    assert [one.id for one in read(out)] == [f"row-{number}" for number in range(100)]


def test_rows_on_standard_input_are_answered_as_they_come(server: ObservingServer) -> None:
    run = observer("grade", "-", stdin=subprocess.PIPE)
    assert run.stdin is not None and run.stdout is not None
    for text, label in (("I live in Lima", "IMPORTANT"), ("thanks", "DISCARD")):
        run.stdin.write(json.dumps({"user_message": text}) + "\n")
        run.stdin.flush()
        seen = Observation.model_validate_json(run.stdout.readline())
        assert seen.grade and seen.grade.label == label
    run.stdin.close()
    assert run.wait(timeout=600) == 0
    run.stdout.close()


@pytest.mark.parametrize(("number", "code"), [(None, 1), (signal.SIGTERM, 143)])
def test_a_run_ends_in_order_while_standard_input_stays_open(
    server: ObservingServer, number: signal.Signals | None, code: int
) -> None:
    server.fails_after = None if number else 0
    run = observer("grade", "-", stdin=subprocess.PIPE)
    assert run.stdin is not None and run.stdout is not None and run.stderr is not None
    run.stdin.write('{"user_message": "thanks"}\n')
    run.stdin.flush()
    if number:
        run.stdout.readline()
        run.send_signal(number)
    assert run.wait(timeout=600) == code
    assert "Fatal" not in run.stderr.read()
    for stream in (run.stdin, run.stdout, run.stderr):
        stream.close()


def test_a_reader_that_has_enough_ends_the_run_in_silence(server: ObservingServer, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl", 200)
    run = observer("grade", str(chats))
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr is not None and "Traceback" not in run.stderr.read()
    assert run.wait(timeout=600) == 0
    run.stderr.close()


def test_a_memory_named_later_catches_up(server: ObservingServer, tmp_path: Path, capsys: Captured) -> None:
    chats, out, memory = write_chats(tmp_path / "chats.jsonl", 7), tmp_path / "out.jsonl", tmp_path / "m.sqlite"
    command = ["observe", str(chats), "--out", str(out), *MODEL]
    assert main(command) == 0
    for expected in ("3 added, 2 ended", "0 added, 0 ended"):
        assert main([*command, "--memory", str(memory)]) == 0
        assert expected in capsys.readouterr().err
    with Store(memory) as store:
        assert [fact.object for fact in store.known()] == ["Porto"]


def test_an_out_file_of_something_else_is_refused_untouched(
    server: ObservingServer, tmp_path: Path, capsys: Captured
) -> None:
    chats, out = write_chats(tmp_path / "chats.jsonl"), tmp_path / "out.jsonl"
    assert main(["grade", str(chats), "--out", str(out), *MODEL]) == 0
    for command, reason in (
        (["observe", str(chats), "--out", str(out), *MODEL], "holds answers of `observer grade`"),
        (["grade", str(chats), "--out", str(chats), *MODEL], "no observation; name another file with --out"),
        (["grade", str(chats), "again", "--out", str(out), "--model", "ollama:other"], "holds answers of watcher"),
    ):
        before = out.read_bytes(), chats.read_bytes()
        assert main(command) == 1
        assert reason in capsys.readouterr().err
        assert (out.read_bytes(), chats.read_bytes()) == before
    note = tmp_path / "note.txt"
    note.write_text("mine, without a line's end")
    assert main(["grade", "hi", "--out", str(note), *MODEL]) == 1
    assert note.read_text() == "mine, without a line's end"


def test_names_that_can_only_be_files_are_not_taken_for_text(tmp_path: Path, capsys: Captured) -> None:
    assert main(["grade", "missing.jsonl", str(tmp_path), "", *MODEL]) == 1
    faults = capsys.readouterr().err
    assert "missing.jsonl: no such file" in faults and f"{tmp_path}: a folder" in faults and "an empty text" in faults


def test_the_default_model_is_the_newest_run(tmp_path: Path) -> None:
    assert default_model(tmp_path) == "ollama:qwen3-observer"
    for age, name in enumerate(("new", "old")):
        file = tmp_path / name / "gguf" / f"{name}-q8_0.gguf"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    assert default_model(tmp_path) == str(tmp_path / "new")


def test_a_model_in_this_process_answers_as_the_client_does(tiny_model: Path, tmp_path: Path, capsys: Captured) -> None:
    gguf = write_gguf(tiny_model, tmp_path / "tiny.gguf", name="tiny")
    chats = write_chats(tmp_path / "chats.jsonl", 12)
    assert main(["grade", str(chats), "--threads", "1", "--model", str(gguf)]) == 0
    seen = [Observation.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    with Observer(gguf, n_threads=1) as client:
        expected = client.grade_many([Exchange.model_validate(row) for row in rows])
    assert [one.grade for one in seen] == [one.grade for one in expected]


def test_a_terminal_shows_what_is_stated_and_takes_nothing_for_markup() -> None:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, highlight=False, markup=False, emoji=False)
    seen = said("User LIVES_IN [red]Lisbon\x1b]0;gotcha\x07 ongoing").model_copy(update={"fault": "cut\x1b[2J"})
    print_observation(console, "I live in \x1b[31mLisbon :smile:", seen)
    shown = stream.getvalue()
    assert "[red]Lisbon" in shown and ":smile:" in shown and "LIVES_IN" in shown
    assert not any(part in shown for part in ("\x1b[31mL", "\x1b]0", "\x07", "\x1b[2J"))


@given(st.lists(st.integers(), max_size=50), st.integers(1, 9))
def test_batches_hold_every_row_once_in_order(rows: list[int], size: int) -> None:
    for split in (batches, arriving):
        found = list(split(rows, size))
        assert [row for batch in found for row in batch] == rows
        assert all(0 < len(batch) <= size for batch in found)
    assert all(len(batch) == size for batch in list(batches(rows, size))[:-1])


def test_what_reading_raises_comes_after_what_was_read() -> None:
    def rows() -> Iterator[int]:
        yield from range(5)
        raise ObserverError("the disk is gone")

    found: list[int] = []
    with pytest.raises(ObserverError, match="the disk is gone"):
        for batch in arriving(rows(), 3):
            found += batch
    assert found == [0, 1, 2, 3, 4]
