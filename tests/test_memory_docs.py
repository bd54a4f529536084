"""The page on memory: its commands and its code run as they stand, and it names the rules that hold."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from observer.cli import main
from observer.memory.facts import OperationKind, Reason
from observer.memory.rules import EARLIER_STAGES, ONE_AT_A_TIME, OPPOSITES
from observer.paths import PROJECT_ROOT
from tests.observing_server import ObservingServer
from tests.test_observe_command import write_chats

PAGE = (PROJECT_ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_runs_in_the_order_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_chats(tmp_path / "chats.jsonl", 7)
    printed = ""
    with ObservingServer().running() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        for kind, code in BLOCKS:
            if kind == "python":
                exec(compile(code, "docs/memory.md", "exec"), {})
                continue
            for line in code.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "observer"
                *arguments, target = arguments if ">" in arguments else [*arguments, ""]
                printed += capsys.readouterr().out
                assert main([argument for argument in arguments if argument != ">"]) == 0, line
                if target:
                    Path(target).write_text(capsys.readouterr().out, encoding="utf-8")
    assert len((tmp_path / "observations.jsonl").read_text().splitlines()) == 7
    assert {edge["name"] for edge in json.loads(Path("graph.json").read_text())["edges"]} == {"LIVES_IN"}
    assert json.loads(Path("memories.jsonl").read_text())["memory"] == "User lives in Porto"
    assert "['Porto']" in printed


def test_the_page_names_every_rule() -> None:
    named = set(re.findall(r"\b[A-Z]+_?[A-Z]+\b", PAGE))
    assert {*ONE_AT_A_TIME, *OPPOSITES, *EARLIER_STAGES} <= named
    assert set(map(str, OperationKind)) <= named
    rows = set(re.findall(r"^\| [A-Z]+ `(\w+)` \|", PAGE, re.MULTILINE))
    assert rows == set(map(str, Reason)) - {"new"}
