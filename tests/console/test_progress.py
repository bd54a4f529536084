"""Progress is a bar on a terminal and a line now and then elsewhere; it says what is left only where that is known."""

from __future__ import annotations

import os
import pty
import re
import sys
import termios
from functools import partial

import pytest

from observer.console.progress import Progress, show_progress


@pytest.mark.parametrize(
    ("progress", "step", "expected"),
    [
        (partial(Progress, "read", 10), (4, None, ""), r"read: 4 of 10, [\d,.]+ a second, about \d+ s left"),
        (partial(Progress, "answers", 10, had=7), (2, None, "$1"), r"answers: 9 of 10, .*, about \d+ s left, \$1"),
        (partial(Progress, "graded", 1000, in_bytes=True), (4, 900, ""), r"graded: 4, .*, about \d+ s left"),
        (partial(Progress, "graded", None, in_bytes=True), (4, 900, ""), r"graded: 4, [\d,.]+ a second"),
        (partial(Progress, "up", 3 * 10**6, unit="B"), (10**6, None, ""), r"up: 1 of 3 MB, about \d+ s left"),
    ],
)
def test_a_line_says_what_is_known(
    progress: partial[Progress], step: tuple[int, int | None, str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    progress(every_s=0).advance(*step)
    assert re.fullmatch(expected, capsys.readouterr().err.strip())


def test_what_was_read_before_the_model_was_there_makes_no_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("graded", 1000, in_bytes=True, every_s=0)
    progress.begin(900)
    progress.advance(4, 900)
    assert "left" not in capsys.readouterr().err
    progress.advance(4, 950)
    assert "left" in capsys.readouterr().err


def test_lines_are_seldom_and_a_hidden_one_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("read", 10) as show:
        show(5, 10)
    Progress("read", 10, is_shown=False, every_s=0).advance()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = Progress("answers", 10, had=7)
        progress.advance(note="$1")
        progress.say("row 3: \x1b[2J")
        progress.close()
        terminal.flush()
        shown = ""
        while "row 3" not in shown:
            shown += os.read(reader, 4096).decode(errors="replace")
    os.close(reader)
    assert "answers" in shown and "/10" in shown and "row 3: \\x1b[2J" in shown
