"""Atomic writes, JSONL with every fault named, hashes, and a clear line for what a disk can do wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer.console.run import run_cli
from observer.errors import ObserverError, raise_all
from observer.files import (
    atomic_path,
    check_writable,
    disk_errors_explained,
    explain_os_error,
    read_jsonl,
    read_text,
    scan_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)
from observer.journal import append

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_nothing_and_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for content in ("old", "new"):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [child.name for child in path.iterdir()] == ["new"]
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert [child.name for child in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_not_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "sub" / "a.json", {"a": object()})
    assert list(tmp_path.rglob("*")) == []


def test_writes_make_their_folders_and_use_unix_line_ends(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a" / "b" / "rows.jsonl", [{"name": "Zoë"}, {}])
    assert (tmp_path / "a" / "b" / "rows.jsonl").read_bytes() == '{"name": "Zoë"}\n{}\n'.encode()


def test_a_file_in_the_way_of_a_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    for attempt in (
        lambda: write_text(tmp_path / "outputs" / "run" / "log", "x"),
        lambda: check_writable(tmp_path / "outputs" / "run"),
        lambda: check_writable(tmp_path / "outputs"),
    ):
        with pytest.raises(ObserverError, match="a file is in the way of a folder; move it away"):
            attempt()
    assert (tmp_path / "outputs").read_text() == "a file"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ObserverError, match="fix its permissions, or name another folder"):
        check_writable(tmp_path)
    with pytest.raises(ObserverError, match="fix its permissions"):
        write_text(tmp_path / "a", "x")
    tmp_path.chmod(0o755)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with pytest.raises(ObserverError, match=r"big: the disk is full; free some space"), atomic_path(path) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors, tokenizers
        "[enforce fail at inline_container.cc:672] . unexpected pos 118912 vs 118804",  # torch, of optimizer.pt
        "basic_ios::clear: iostream error",
        "PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_what_libraries_say_of_a_full_disk_is_the_same_clear_line(tmp_path: Path, words: str) -> None:
    path = tmp_path / "model"
    with pytest.raises(ObserverError, match="model: the disk is full; free some space"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise Exception(words)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_libraries_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="os error 2"), disk_errors_explained(tmp_path):
        raise Exception("No such file or directory (os error 2)")


def test_what_a_killed_process_left_goes_with_the_next_write_of_the_file(tmp_path: Path) -> None:
    dead, alive = 2**22 + 1, os.getppid()  # beyond Linux's highest process number
    for name in (f".a[1].json.{dead}.tmp", f".b.json.{dead}.tmp", f".a[1].json.{alive}.tmp", ".a[1].json.mine.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".adapter.{dead}.tmp").mkdir()
    write_text(tmp_path / "a[1].json", "{}")
    with atomic_path(tmp_path / "adapter") as temporary:
        temporary.mkdir()
    left = {f".b.json.{dead}.tmp", f".a[1].json.{alive}.tmp", ".a[1].json.mine.tmp", "a[1].json", "adapter"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "answers.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("ab") as stream:
        append(stream, path, b"one\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
        try:
            with pytest.raises(ObserverError, match="larger than"):
                append(stream, path, b"two\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        append(stream, path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_too_little_space_is_told_before_work_starts(tmp_path: Path) -> None:
    check_writable(tmp_path / "new", needed_bytes=1)
    with pytest.raises(ObserverError, match=r"MB needed, .* MB free; free some space, or name another folder"):
        check_writable(tmp_path, needed_bytes=1 << 60)
    assert [child.name for child in tmp_path.rglob("*")] == ["new"]


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.ENOENT, "no such file; check the path"),
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk is full; free some space"),
        (errno.EACCES, "cannot be written or read here; fix its permissions"),
        (errno.EROFS, "cannot be written or read here; fix its permissions"),
        (errno.ENOTDIR, "a file is in the way of a folder; move it away"),
        (errno.EIO, f"{os.strerror(errno.EIO)}; check the path"),
    ],
)
def test_what_a_disk_says_becomes_place_finding_and_mend(code: int, fix: str) -> None:
    assert explain_os_error(OSError(code, os.strerror(code)), Path("x/y")).startswith(f"{Path('x/y')}: {fix}")


def test_every_malformed_line_is_named_in_one_pass(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\nnot json\n[1]\n{"a": \n"text"\n{"b": 2}\n' + "[" * 100_000 + "\n", encoding="utf-8")
    rows, faults = scan_jsonl(path)
    assert rows == [(1, {"a": 1}), (7, {"b": 2})]
    assert [fault.partition(": ")[0] for fault in faults] == [f"{path}:{line}" for line in (3, 4, 5, 6, 8)]
    with pytest.raises(ObserverError) as raised:
        read_jsonl(path)
    assert str(raised.value).splitlines() == faults


@pytest.mark.parametrize(("ending", "line"), [("\r\n", 3), ("\n", 3)])
def test_other_line_ends_keep_the_line_numbers(tmp_path: Path, ending: str, line: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ending.join(['{"a":1}', '{"b":2}', "oops"]).encode())
    assert scan_jsonl(path)[1][0].startswith(f"{path}:{line}: not JSON")


def test_a_byte_order_mark_is_no_fault_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert read_jsonl(path) == [(1, {"a": 1})]


def test_text_in_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n{}\n\xff\n")
    with pytest.raises(ObserverError, match=r"rows.jsonl:3: not UTF-8 text; save the file as UTF-8"):
        read_text(path)


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4))
@settings(max_examples=50)
def test_jsonl_reads_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_jsonl(path, rows)
    assert [row for _, row in read_jsonl(path)] == rows


def test_a_folders_hash_follows_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_text(tmp_path / name / "sub" / "a.txt", "a")
        write_text(tmp_path / name / "b.txt", "b")
    first = sha256_file(tmp_path / "one")
    assert first == sha256_file(tmp_path / "two")
    (tmp_path / "two" / "b.txt").rename(tmp_path / "two" / "c.txt")
    assert first != sha256_file(tmp_path / "two")
    write_text(tmp_path / "one" / "b.txt", "B")
    assert first != sha256_file(tmp_path / "one")


def test_raise_all_is_quiet_without_faults_and_counts_what_it_leaves_out() -> None:
    raise_all([])
    with pytest.raises(ObserverError) as raised:
        raise_all([f"fault {number}" for number in range(5)], limit=3)
    assert str(raised.value).splitlines() == ["fault 0", "fault 1", "fault 2", "… and 2 more faults"]


def test_run_cli_turns_a_fault_into_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ObserverError("a.yaml:1: wrong; fix it")

    def interrupt() -> int:
        raise KeyboardInterrupt

    assert run_cli(fail, debug=False) == 1
    assert capsys.readouterr() == ("", "error: a.yaml:1: wrong; fix it\n")
    assert run_cli(interrupt) == 130
    assert run_cli(lambda: None) == 0
    with pytest.raises(ObserverError):
        run_cli(fail, debug=True)
