"""Checks a command that is not run: its program is one we know, its arguments parse, and its files are there or made.

Capitals stand for what the reader fills in: `outputs/RUN`, `FILE.gguf`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from docs.parsers import script_parser
from observer.cli import build_parser
from observer.config import load_config
from observer.paths import PROJECT_ROOT

ELSEWHERE = {
    "git": "clone diff",
    "llama-server": "--model --port --ctx-size --parallel",
    "ollama": "create pull run serve",
    "vllm": "serve --served-model-name --port --max-model-len",
}
"""Subcommands and flags of programs that are not ours, as in their own pages."""
OUTPUT_FLAGS = frozenset("--out --work --memory --markdown --json --quarantine --ledger --log".split())
SERVER_PATHS = ("/api/chat", "/completion", "/v1/completions")
_SUFFIXES = frozenset(".gguf .html .json .jsonl .log .md .py .sqlite .txt .yaml".split())
_PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_-]+\b|…")


class WrongCommand(AssertionError):
    """A command of a page that its reader could not give."""


@dataclass
class Checker:
    """`made` are the files that earlier commands of the page make, or folders and stems of them.

    Of these, `promised` are what commands would make that were not run.
    """

    folder: Path
    made: list[str] = field(default_factory=list)
    promised: list[str] = field(default_factory=list)

    def check(self, program: str, arguments: Sequence[str]) -> None:
        """Raises WrongCommand."""
        arguments = list(arguments)
        if program in ("torchrun", "accelerate"):
            at = next(place for place, word in enumerate(arguments) if word.endswith(".py"))
            program, arguments = "python", arguments[at:]
        kinds = {
            "python": self._python, "observer": self._observer, "make": self._make, "pip": self._pip,
            "curl": self.curl_request,
        }  # fmt: skip
        if program in kinds:
            kinds[program](arguments)
        elif program in ELSEWHERE:
            words = {arguments[0], *(word for word in arguments if word.startswith("--"))}
            if unknown := words - set(ELSEWHERE[program].split()):
                raise WrongCommand(f"{program} {' '.join(unknown)}: unknown; known: {ELSEWHERE[program]}")
        elif program not in ("pytest", "cat", "tail", "cp", "ls", "head", "mkdir"):
            raise WrongCommand(f"{program}: no program that the pages know; add it to {Path(__file__).name}")
        self._check_files(arguments)

    def lacks(self, arguments: Sequence[str]) -> bool:
        """Whether some file is not there, or a word stands for what the reader fills in."""
        if any(_PLACEHOLDER.search(word) is not None and _is_file(word) for word in arguments):
            return True
        files = _inputs(arguments)
        return any(word.startswith(made) for word in files for made in self.promised) or any(
            not (self.folder / word).exists() for word in files
        )

    def note_outputs(self, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse, and remember what the command will make."""
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                parsed = parser.parse_args(list(arguments))
        except SystemExit:
            raise WrongCommand(errors.getvalue().strip().splitlines()[-1]) from None
        for flag, value in itertools.pairwise(arguments):
            if flag in OUTPUT_FLAGS:
                self.made.append(value)
        return parsed

    def curl_request(self, arguments: Sequence[str]) -> tuple[str, Any]:
        """The address and the body, which is JSON given with -d, from a file or in place."""
        (url,) = [word for word in arguments if word.startswith("http")]
        if not url.endswith(SERVER_PATHS):
            raise WrongCommand(f"{url}: none of {', '.join(SERVER_PATHS)}")
        data = arguments[list(arguments).index("-d") + 1]
        text = (self.folder / data[1:]).read_text(encoding="utf-8") if data.startswith("@") else data
        return url, json.loads(text)

    def _python(self, arguments: Sequence[str]) -> None:
        if arguments[:2] == ["-m", "pip"]:
            return self._pip(arguments[2:])
        if arguments[0] == "-m":
            arguments = [f"{arguments[1].replace('.', '/')}.py", *arguments[2:]]
        script = Path(arguments[0])
        if not (PROJECT_ROOT / script).is_file():
            raise WrongCommand(f"{script}: no such script")
        if script.parts[0] in ("data", "docs", "observer"):
            return None
        parsed = self.note_outputs(_script_parser(script), arguments[1:])
        self._config(parsed)
        return None

    def _config(self, parsed: argparse.Namespace) -> None:
        path: Path | None = getattr(parsed, "config", None)
        if path is None or not (self.folder / path).exists():
            return
        overrides = list(getattr(parsed, "overrides", None) or [])
        if name := getattr(parsed, "run_name", None):
            overrides.append(f"run.name={name}")
        run = f"outputs/{load_config(self.folder / path, overrides).run.name}"
        self.made.append(run)
        if not (self.folder / run / "gguf").exists():
            self.promised.append(run)

    def _observer(self, arguments: Sequence[str]) -> None:
        self.note_outputs(build_parser(), arguments)

    def _make(self, arguments: Sequence[str]) -> None:
        text = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
        targets = re.findall(r"^([a-z-]+):", text, re.MULTILINE)
        variables = re.findall(r"^([A-Z]+) +\?=", text, re.MULTILINE)
        for word in arguments:
            name, equals, _ = word.partition("=")
            if name not in (variables if equals else targets):
                raise WrongCommand(f"make {word}: the Makefile has no such {'variable' if equals else 'target'}")
        runs = {"train": "outputs/nano", "observer": "outputs/smollm2-observer"}
        self.made += [run for target, run in runs.items() if target in arguments]

    def _pip(self, arguments: Sequence[str]) -> None:
        project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for word in arguments:
            if re.match(r"observer\b", word):
                raise WrongCommand(f"pip {word}: an index's package of that name is not ours; -e '.[…]' is")
            extras = re.search(r"^\.\[([\w,-]+)\]$", word)
            unknown = set(extras[1].split(",")) - set(project["optional-dependencies"]) if extras else set()
            if unknown:
                raise WrongCommand(f"pip {word}: pyproject.toml has no extra {', '.join(unknown)}")

    def _check_files(self, arguments: Sequence[str]) -> None:
        for word in _inputs(arguments):
            is_made = any(word == made or word.startswith((f"{made}/", _stem(made))) for made in self.made)
            if not (is_made or (self.folder / word).exists() or _PLACEHOLDER.search(word)):
                raise WrongCommand(f"{word}: no such file, and no command before makes it")


@cache
def _script_parser(script: Path) -> argparse.ArgumentParser:
    return script_parser(script)


def _stem(made: str) -> str:
    """What begins the names of files made beside one: `labelled/chats.jsonl` -> `labelled/chats-`."""
    return f"{made.removesuffix(Path(made).suffix)}-"


def _inputs(arguments: Sequence[str]) -> list[str]:
    """The words that name files to read."""
    words, is_output = [], False
    for word in arguments:
        if not is_output and _is_file(word):
            words.append(re.sub(r"\+few\d+$", "", word.removeprefix("@").removeprefix("hf:")))
        is_output = word in OUTPUT_FLAGS
    return words


def _is_file(word: str) -> bool:
    if (
        word.startswith("-")
        or "://" in word
        or "=" in word
        or " " in word
        or re.match(r"(ollama:|[A-Z][\w.-]*/)", word)
    ):
        return False
    return "/" in word or Path(re.sub(r"\+few\d+$", "", word)).suffix in _SUFFIXES
