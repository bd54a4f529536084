"""The nightly set: left out by default, complete when asked for, and one page from pytest's JUnit files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT
from tests.trust.conftest import Night
from tests.trust.page import render
from tests.trust.results import PARTS, Result, code_commit, is_current, is_this_code, load_results, test_id

ORIGIN = {"commit": "abc1234", "machine": "A CPU, 2 cores", "settings": "model=outputs/nano scale=1.0"}


def junit(path: Path, part: str, *cases: str, at: str = "2026-11-23T01:02:03.5+00:00", commit: str = "abc1234") -> None:
    """A file as pytest writes it; a case is `name`, its figures, and how it ended."""
    name = test_id(f"{PARTS[part][1]}::").removesuffix(".")
    same = "".join(f'<property name="{key}" value="{value}"/>' for key, value in {**ORIGIN, "commit": commit}.items())
    found = "".join(f'<testcase classname="{name}" {case}</testcase>'.replace("<properties>", f"<properties>{same}")
                    for case in cases)  # fmt: skip
    path.write_text(f'<testsuites><testsuite name="pytest" timestamp="{at}">{found}</testsuite></testsuites>')


PASSED = 'name="test_that_it_holds" time="90.0"><properties></properties>'
FAILED = 'name="test_that_it_holds" time="30.0"><properties></properties><failure message="two\nwere lost">x</failure>'
COUNTED = (
    'name="test_n[{0}]" time="60"><properties><property name="target" value="{0}"/>'
    '<property name="inputs" value="{1}"/></properties>'
)


def test_the_page_says_of_every_part_how_it_ended_when_where_and_on_which_code(tmp_path: Path) -> None:
    for part in PARTS:
        junit(tmp_path / f"{part}.xml", part, PASSED)
    page = render(load_results(tmp_path))
    assert "| faults    | passed | 1     | 2026-11-23 01:02 | abc1234 | 1.5     |" in page
    assert page.count("abc1234; A CPU, 2 cores; model=outputs/nano scale=1.0.") == len(PARTS)
    assert "stand-in" in page and page.endswith("**Verdict: all 8 parts passed.**\n")


def test_the_verdict_names_what_failed_what_was_not_run_and_different_commits(tmp_path: Path) -> None:
    for part in [*PARTS][:-1]:
        junit(tmp_path / f"{part}.xml", part, PASSED)
    junit(tmp_path / "fuzz.xml", "fuzz", PASSED.replace("holds", "also_holds"), FAILED, commit="other")
    page = render(load_results(tmp_path))
    assert page.endswith(
        "**Verdict: 6 of 8 parts passed; failed: fuzz; not run: audit; the tests ran on different commits.**\n"
    )
    assert "1 passed, 1 failed." in page and "- that it holds: **failed**, two were lost" in page
    assert "Not run. `python -m tests.trust.nightly --only audit` runs it." in page


def test_a_part_of_which_some_tests_were_left_out_has_not_passed(tmp_path: Path) -> None:
    one = COUNTED.replace("<properties>", '<properties><property name="of" value="2"/>')
    junit(tmp_path / "fuzz.xml", "fuzz", one.format("rows", 1))
    page = render(load_results(tmp_path))
    assert "| fuzz      | partly run |" in page and "0 of 8 parts passed; partly run: fuzz; not run" in page
    junit(tmp_path / "more.xml", "fuzz", one.format("chats", 1))
    assert "| fuzz      | passed  |" in render(load_results(tmp_path))


def test_figures_of_one_test_are_a_list_and_those_of_several_a_table(tmp_path: Path) -> None:
    junit(tmp_path / "x.xml", "fuzz", COUNTED.format("rows", 1234567), COUNTED.format("a | b", ""))
    junit(tmp_path / "y.xml", "audit", COUNTED.format("one", 5))
    page = render(load_results(tmp_path))
    assert "| rows   | 1,234,567 |" in page and "| a \\| b |           |" in page
    assert "- target: one\n- inputs: 5" in page


def test_of_a_test_the_newest_result_counts_whatever_its_file_is_called(tmp_path: Path) -> None:
    junit(tmp_path / "b.xml", "load", FAILED, at="2026-11-23T01:00:00")
    junit(tmp_path / "a.xml", "load", PASSED, at="2026-11-24T01:00:00")
    (found,) = load_results(tmp_path).values()
    assert (found.outcome, found.seconds, found.reason) == ("passed", 90.0, "")
    (tmp_path / "c.xml").write_text("<testsuite>")
    with pytest.raises(ObserverError, match=r"no JUnit file .* run its tests again"):
        load_results(tmp_path)


def test_figures_are_text_which_reaches_the_page_from_another_process(tmp_path: Path) -> None:
    found: dict[str, object] = {}
    Night(property=found.__setitem__).record(model=tmp_path, forged=0)
    assert found == {"model": str(tmp_path), "forged": "0"}


def test_only_what_passed_on_this_code_with_these_settings_is_not_run_again() -> None:
    now = {**ORIGIN, "commit": code_commit() or ""}

    def found(outcome: str = "passed", **other: str) -> Result:
        return Result("load", "test_x", outcome, "", "", 1.0, now | other)

    assert is_current(found(), now) == is_this_code(now["commit"])  # a checkout with changes keeps nothing
    for result in (None, found("failed"), found("skipped"), found(settings="scale=0.1"), found(commit="")):
        assert not is_current(result, now)
    assert not is_this_code("abc1234+") and not is_this_code("0" * 40)


COLLECT = """
import json, sys
import pytest

class Names:
    def pytest_collection_finish(self, session):
        self.found = [item.nodeid for item in session.items]

for options in json.loads(sys.argv[1]):
    names = Names()
    assert pytest.main(["--collect-only", "-qq", "--fresh", *options, *sys.argv[2:]], plugins=[names]) == 0
    print("\\ncollected", json.dumps(names.found))
"""
"""In one process, which imports the tests once."""


@pytest.mark.slow
def test_the_set_is_left_out_by_default_and_every_part_is_there_when_asked_for() -> None:
    paths = [path for _, *paths in PARTS.values() for path in paths]
    options = [["-m", "nightly"], [], ["-m", "nightly and alone"]]
    command = [sys.executable, "-c", COLLECT, json.dumps(options), "tests/trust", *paths]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    lines = [line.removeprefix("collected ") for line in done.stdout.splitlines() if line.startswith("collected ")]
    night, day, alone = (set[str](json.loads(line)) for line in lines)
    assert night & day == {name for name in night if not name.startswith("tests/trust/")} != set()
    assert {path for path in paths if any(name.startswith(f"{path}::") for name in night)} == set(paths)
    assert {name.partition("::")[0] for name in alone} == {PARTS["load"][1], PARTS["bulk"][1]}
