"""The nightly set: one page from the parts' results, and a runner that no part can hold up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from observer.errors import ObserverError
from tests.trust.page import details, render, verdict
from tests.trust.parts import Part, is_current, nightly, run_all
from tests.trust.result import PARTS, TrustResult, code_commit, is_this_code, load_results, save_result

RESULT = TrustResult(
    command="python eval/x.py --n 3",
    machine="A CPU, 2 cores",
    date="2026-11-23T01:02:03+00:00",
    git_commit="abc1234",
    seconds=90.0,
    passed=True,
    summary="Three things tried, none lost.",
    details={"n_tried": 3},
)
LOAD: dict[str, Any] = {
    "model": "outputs/nano",
    "callers": 64,
    "turns": 256,
    "flat_mb_per_min": 1.0,
    "thread_caches": False,
    "server": "recorded",
    "parts": [
        {
            "name": "threads",
            "account": {
                "n_answered": 1234,
                "n_lost": 0,
                "n_repeated": 0,
                "n_foreign": 0,
                "n_different": 7,
                "n_errors": 0,
                "requests_per_s": 4.06,
                "fewest_by_a_caller": 18,
                "most_by_a_caller": 21,
                "latency": {"p50_ms": 100.4, "p90_ms": 200.0, "p99_ms": 300.0, "max_ms": 400.6},
            },
            "memory": {
                "n_samples": 300,
                "start_mb": 107.2,
                "end_mb": 114.4,
                "max_mb": 115.0,
                "mb_per_min": 0.12,
                "low": -0.01,
                "high": 0.3,
            },
        }
    ],
}
BULK: dict[str, Any] = {
    "about": "observer grade TURNS.jsonl",
    "bytes_per_row": 500,
    "runs": [
        {
            "name": "grade",
            "n_in": 100_000,
            "n_out": 99_999,
            "n_missing": 1,
            "n_repeated": 0,
            "n_truncated": 4,
            "n_faults": 0,
            "rows_per_s": 81.23,
            "seconds": 1230.0,
            "most_bytes_per_row": 261.4,
            "memory": LOAD["parts"][0]["memory"],
        }
    ],
}


def all_passed() -> dict[str, TrustResult]:
    own = {"load": LOAD, "bulk": BULK}
    return {name: replace(RESULT, details=own.get(name, RESULT.details)) for name in PARTS}


def test_the_page_tells_machine_date_commit_command_and_summary_of_every_part() -> None:
    page = render(all_passed(), {})
    assert page.count("Three things tried, none lost.") == len(PARTS)
    origin = "`python eval/x.py --n 3`, 1 min 30 s on A CPU, 2 cores, 2026-11-23T01:02:03+00:00, commit abc1234."
    assert page.count(origin) == len(PARTS)
    assert "| faults    | passed | 2026-11-23 01:02 | abc1234 | 1.5     |" in page
    assert page.endswith("**Verdict: all 8 parts passed.**\n")


def test_the_verdict_names_what_failed_what_was_not_run_and_different_commits() -> None:
    results = all_passed()
    del results["audit"]
    results["fuzz"] = replace(RESULT, passed=False, git_commit="other")
    told = verdict(results, {"load": "not done after 40 minutes"})
    assert told == (
        "**Verdict: 5 of 8 parts passed; failed: fuzz; not run: load, audit; the parts ran on different commits.**"
    )
    page = render(results, {"load": "not done after 40 minutes"})
    assert "Not finished: not done after 40 minutes." in page
    assert "Not run. `python -m tests.trust.nightly --only audit` runs it." in page
    assert "| fuzz      | **failed**   |" in page


def test_load_and_bulk_are_tables_of_their_own() -> None:
    page = render(all_passed(), {})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    assert ["threads", "1,234", "0", "0", "0", "7", "0", "4.1", "100", "200", "300", "401", "18 to 21"] in cells
    assert ["threads", "300", "107", "114", "115", "+0.120 [-0.010, +0.300]"] in cells
    assert ["grade", "100,000", "99,999", "1", "0", "4", "0", "81.2", "20.5"] in cells
    assert ["grade", "300", "107", "114", "115", "+0.120 [-0.010, +0.300]", "261"] in cells


def test_details_of_any_part_become_lists_and_tables() -> None:
    found = {
        "n_points": 40,
        "by_stage": {"train": {"injected": 12, "survived": 12}, "merge": {"injected": 4, "survived": 3}},
        "targets": [{"target": "config", "n_inputs": 1_000_000, "crashes": []}, {"target": "rows", "seconds": 0.51}],
        "signals": {"SIGKILL": 20},
        "deep": {"a": {"b": {"c": 1}}, "d": 4},
        "empty": [],
    }
    plain, stages, targets, signals = details(found)
    assert plain == "- points: 40"
    assert "| train | 12       | 12       |" in stages and stages.startswith("by stage:")
    assert "| config | 1,000,000 |         |" in targets and "| rows   |           | 0.51    |" in targets
    assert "| SIGKILL | 20    |" in signals
    assert details("no object") == []


def test_a_cell_cannot_break_its_table() -> None:
    (shown,) = details({"rows": [{"a": "one | two\nthree"}]})
    assert "| one \\| two three |" in shown


def test_results_read_back_in_the_order_of_the_page(tmp_path: Path) -> None:
    for name in ("load", "faults"):
        fields = {"command": "python x", "seconds": 1.24, "passed": True, "summary": "Done.", "details": {"n": 1}}
        save_result(name, **fields, folder=tmp_path)
    found = load_results(tmp_path)
    assert list(found) == ["faults", "load"] and found["load"].seconds == 1.2 and found["load"].details == {"n": 1}
    (tmp_path / "fuzz.json").write_text('{"passed": true}')
    with pytest.raises(ObserverError, match="delete it and run the part again"):
        load_results(tmp_path)
    with pytest.raises(ValueError, match="none of faults, fuzz"):
        save_result("fuzzy", command="", seconds=0, passed=True, summary="", details=None, folder=tmp_path)


def test_only_a_part_that_passed_on_this_code_with_these_arguments_is_kept() -> None:
    part = Part("load", ("eval/x.py", "--n", "3"), 1)
    own = replace(RESULT, git_commit=code_commit())
    assert is_current(part, {"load": own}) == is_this_code(own.git_commit)  # a checkout with changes keeps nothing
    for other in (replace(own, passed=False), replace(own, command="python eval/x.py"), replace(own, git_commit=None)):
        assert not is_current(part, {"load": other})
    assert not is_current(part, {}) and not is_this_code("abc1234+") and not is_this_code("0" * 40)


def script(folder: Path, name: str, code: str) -> tuple[str]:
    path = folder / name
    path.write_text(f"import sys, time, pathlib\n{code}\n")
    return (str(path),)


def test_parts_that_fail_or_hang_do_not_keep_the_others_from_running(tmp_path: Path) -> None:
    made = tmp_path / "made"
    parts = [
        Part("faults", script(tmp_path, "fails.py", "print('two were lost'); sys.exit(1)"), 1),
        Part("fuzz", script(tmp_path, "hangs.py", "time.sleep(60)"), 0.01),
        Part("load", script(tmp_path, "works.py", f"pathlib.Path({str(made)!r}).touch()"), 1, is_timed=True),
    ]
    said: list[str] = []
    unfinished = run_all(parts, 2, tmp_path / "logs", said.append)
    assert unfinished == {"faults": "exit code 1: two were lost", "fuzz": "not done after 0.01 minutes"}
    assert made.exists() and any(line.startswith("load: exit code 0") for line in said)


def test_parts_side_by_side_share_the_cores_and_a_timed_one_has_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os; pathlib.Path(sys.argv[0] + '.txt').write_text(os.environ.get('OMP_NUM_THREADS', 'all'))"
    parts = [
        Part("faults", script(tmp_path, "beside.py", code), 1),
        Part("load", script(tmp_path, "timed.py", code), 1, is_timed=True),
    ]
    n_jobs = 1_000  # more than any machine has cores
    assert run_all(parts, n_jobs, tmp_path / "logs", lambda _: None) == {}
    assert [(tmp_path / f"{name}.py.txt").read_text() for name in ("beside", "timed")] == ["1", "all"]
    assert run_all(parts, 1, tmp_path / "logs", lambda _: None) == {}
    assert (tmp_path / "beside.py.txt").read_text() == "all"


def test_the_set_has_every_part_once_and_a_missing_command_is_told(tmp_path: Path) -> None:
    assert [part.name for part in nightly("outputs/nano", Path("configs/nano.yaml"))] == list(PARTS)
    missing = Part("audit", ("-m", "tests.trust.none"), 1)
    assert run_all([missing], 1, tmp_path, lambda _: None) == {"audit": "tests/trust/none.py: no such file"}
