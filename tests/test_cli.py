"""The `observer` command as a person meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from observer import __version__
from observer.cli import main
from observer.doctor import Finding, find_package, render
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL
from observer.prompts import training_row
from observer.schema import parse_row

GRADING = {"user_message": "I work at Siemens", "assistant_message": "Nice.", "label": "IMPORTANT"}
EXTRACTION = {
    "user_message": "I work at Siemens",
    "assistant_message": "",
    "entities": [{"name": "User", "type": "Person"}, {"name": "Siemens", "type": "Organization"}],
    "relationships": [{"subject": "User", "predicate": "WORKS_AT", "object": "Siemens", "temporal": "ongoing"}],
}


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def observer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "observer.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, timeout=600)


def test_version() -> None:
    assert observer("--version").stdout == f"observer {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["data"], ["data", "check"], ["nonsense"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_check_sums_up_sound_rows_of_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_rows(tmp_path / "raw.jsonl", GRADING, EXTRACTION)
    row, _ = parse_row(EXTRACTION)
    assert row
    split = write_rows(tmp_path / "split.jsonl", training_row(row))
    assert main(["data", "check", str(raw), str(split)]) == 0
    assert capsys.readouterr().out == f"{raw}: 2 rows (1 IMPORTANT, 1 extraction)\n{split}: 1 rows (1 extract)\n"


def test_check_names_every_fault_of_every_file_in_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dangling = {**EXTRACTION, "entities": EXTRACTION["entities"][:1]}
    raw = write_rows(tmp_path / "raw.jsonl", {**GRADING, "label": "MAYBE"}, GRADING, dangling, [1])
    with raw.open("a") as stream:
        stream.write("not json\n")
    split = write_rows(tmp_path / "split.jsonl", {"prompt": [], "completion": [], "task": "sing"})
    missing = tmp_path / "missing.jsonl"
    assert main(["data", "check", str(raw), str(missing), str(split)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    for place in (f"{raw}:1: ", f"{raw}:3: ", f"{raw}:4: ", f"{raw}:5: ", f"{split}:1: ", f"{missing}: "):
        assert place in printed.err
    assert f"{raw}:2" not in printed.err
    assert "MAYBE" in printed.err
    assert "'Siemens' is not among the entities" in printed.err


def test_check_refuses_an_empty_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(write_rows(tmp_path / "empty.jsonl"))]) == 1
    assert "no rows" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.jsonl")
    plain = observer("data", "check", missing)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr.startswith(f"error: {missing}: no such file")
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in observer("--debug", "data", "check", missing).stderr


def test_generate_writes_the_shipped_bytes_and_check_accepts_them(tmp_path: Path) -> None:
    assert main(["data", "generate", "--out", str(tmp_path)]) == 0
    files = [GRADING_JSONL, EXTRACTION_JSONL, TRAIN_JSONL, VAL_JSONL]
    for name in files:
        assert (tmp_path / name).read_bytes() == (PROJECT_ROOT / name).read_bytes(), (
            f"make data brings {name} up to date"
        )
    assert main(["data", "check", *(str(tmp_path / name) for name in files)]) == 0


def test_doctor_tells_a_line_about_each_thing_and_finds_nothing_required_missing_here() -> None:
    done = observer("doctor")
    names = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"python", "cores", "memory", "disk", "torch", "gpu", "unsloth", "llama-cpp-python", "ollama"} <= {*names}
    assert done.returncode == 0


def test_doctor_says_how_to_mend_what_is_missing() -> None:
    required, optional = find_package("no-such-package"), find_package("no-such-package", "pip install it")
    assert required.is_fatal
    assert not optional.is_fatal
    lines = render([required, optional, Finding("python", "3.11")]).splitlines()
    assert [line.split()[0] for line in lines] == ["missing", "note", "ok"]
    assert lines[1].endswith("not installed; pip install it")


def test_an_error_moves_no_cursor(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", GRADING | {"label": "\x1b[2J\u202elabel"})
    done = observer("data", "check", str(path))
    assert done.returncode == 1 and done.stderr.startswith(
        f"error: {path}:1: label: unknown value '\\x1b[2J\\u202elabel'"
    )
    path = write_rows(tmp_path / "rows.jsonl", GRADING | {"\x1b[2J\u202efield": 1})
    done = observer("data", "check", str(path))
    assert done.returncode == 0 and done.stdout.endswith("; fields not used: \\x1b[2J\\u202efield (1)\n")
