"""Runs the commands of a page in a folder: `observer` in this process, small tools as they are, all else only checked.

A shell as far as the pages need one: pipes, `>`, `&&`, comments and quotes; anything else is an error.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from observer.cli import build_parser, main
from tests.support.docs_commands import Checker

TOOLS = frozenset("cat cp echo grep head ls mkdir mv printf sort tail wc".split())
RUNS = [["grade"], ["extract"], ["observe"], ["memory"], ["label"], ["doctor"], ["data", "check"], ["data", "split"]]
"""Subcommands of `observer` that are run; what trains, converts, serves or takes minutes is parsed instead."""
RUNS_NOT_WITH = frozenset({"--ray"})
OLLAMA = re.compile(r"^http://(localhost|127\.0\.0\.1):11434(?=/)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class _Stream(io.TextIOWrapper):
    """Text over bytes in memory that says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        self.bytes, self._is_terminal = io.BytesIO(), is_terminal
        super().__init__(self.bytes, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return self._is_terminal


@dataclass
class Stage:
    words: list[str]
    target: str = ""
    is_appended: bool = False


@dataclass
class Shell:
    """`ollama_url` stands in for the server that pages call localhost:11434, `openai_url` for all that label."""

    folder: Path
    ollama_url: str
    openai_url: str
    checker: Checker = field(init=False)

    def __post_init__(self) -> None:
        self.checker = Checker(self.folder)

    def run(self, line: str) -> str | None:
        """What the line prints on a terminal; None when it, or part of it, was only checked."""
        printed: bytes | None = b""
        for pipeline in _pipelines(line):
            output: bytes | None = b""
            for place, stage in enumerate(pipeline):
                is_shown = place == len(pipeline) - 1 and not stage.target
                output = self._run(stage.words, output, is_shown)
                if stage.target:
                    self._write(stage, output)
                    output = b"" if output is not None else None
            printed = None if output is None or printed is None else printed + output
        return None if printed is None else _ANSI.sub("", printed.decode("utf-8"))

    def _write(self, stage: Stage, output: bytes | None) -> None:
        self.checker.made.append(stage.target)
        if output is not None:
            with (self.folder / stage.target).open("ab" if stage.is_appended else "wb") as stream:
                stream.write(output)

    def _run(self, words: list[str], stdin: bytes | None, is_shown: bool) -> bytes | None:
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if not words or words[0] in ("export", "cd"):
            return b""
        program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
        if program in TOOLS and stdin is not None and not self.checker.lacks(arguments):
            return self._tool(program, arguments, stdin)
        if program == "observer" and stdin is not None and self._can_run(arguments):
            return self._observer(arguments, stdin, is_shown)
        self.checker.check(program, arguments)
        if program == "curl":
            return self._curl(arguments)
        return None

    def _can_run(self, arguments: list[str]) -> bool:
        is_run = any(arguments[: len(start)] == start for start in RUNS) and not RUNS_NOT_WITH & set(arguments)
        return is_run and not self.checker.lacks(arguments)

    def _tool(self, program: str, arguments: list[str], stdin: bytes) -> bytes:
        """`tail -f`, which never ends, reads what is there."""
        if program == "tail" and arguments[0] in ("-f", "-F"):
            program, arguments = "cat", arguments[1:]
        done = subprocess.run([program, *arguments], input=stdin, capture_output=True, check=True, cwd=self.folder)
        return done.stdout

    def _observer(self, arguments: list[str], stdin: bytes, is_shown: bool) -> bytes:
        self.checker.note_outputs(build_parser(), arguments)
        if arguments[0] == "label":
            arguments = [*arguments, "--base-url", self.openai_url]  # of two, the last one holds
        with _streams(stdin, is_shown) as stdout:
            code = main(arguments)
        assert code == 0, f"observer {shlex.join(arguments)} ended with {code}"
        return stdout.bytes.getvalue()

    def _curl(self, arguments: list[str]) -> bytes | None:
        """Ask our stand-in for Ollama; other servers are not asked."""
        url, body = self.checker.curl_request(arguments)
        if not OLLAMA.match(url):
            return None
        answer = httpx.post(OLLAMA.sub(self.ollama_url, url), json=body, timeout=600, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.content


@contextlib.contextmanager
def _streams(stdin: bytes, is_terminal: bool) -> Iterator[Any]:
    stdout = _Stream(is_terminal)
    before = sys.stdin, sys.stdout
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        sys.stdin, sys.stdout = io.TextIOWrapper(file), stdout
        try:
            yield stdout
            stdout.flush()
        finally:
            sys.stdin, sys.stdout = before


def _pipelines(line: str) -> list[list[Stage]]:
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split, words.commenters = True, "#"
    pipelines, stages, stage = [], [], Stage([])
    tokens = iter(words)
    for word in tokens:
        if word in (">", ">>"):
            stage.target, stage.is_appended = next(tokens), word == ">>"
        elif word == "|":
            stages.append(stage)
            stage = Stage([])
        elif word in ("&&", ";", "&"):
            pipelines.append([*stages, stage])
            stages, stage = [], Stage([])
        else:
            assert not set(word) <= set("|&;<>"), f"the pages' shell does not know {word!r}"
            stage.words.append(word)
    return [*pipelines, *([[*stages, stage]] if stage.words or stages else [])]
