"""The argparse parsers of every command, found without running one, and what their `--help` says."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from observer.cli import build_parser
from observer.paths import PROJECT_ROOT


class _Found(BaseException):
    """Carries a parser out of the `main` that built it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def script_paths() -> list[Path]:
    """`train_sft.py`, the nightly set, then every script and module of eval/ that takes arguments.

    Relative to the project. What is called `child` is started by others, not by people.
    """
    found = [*(PROJECT_ROOT / "eval").rglob("*.py"), PROJECT_ROOT / "tests" / "trust" / "nightly.py"]
    scripts = [path for path in sorted(found, key=lambda path: (len(path.parts), path)) if _is_command(path)]
    return [Path("train_sft.py"), *(path.relative_to(PROJECT_ROOT) for path in scripts)]


def _is_command(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return 'if __name__ == "__main__"' in text and "ArgumentParser(" in text and path.stem != "child"


def script_parser(script: Path) -> argparse.ArgumentParser:
    """The parser of a script: its `main` runs up to the place where it would parse, and no further."""
    module = importlib.import_module(".".join(script.with_suffix("").parts))
    parser = _parser_of(module.main)
    parser.prog = command_of(script)
    return parser


def command_of(script: Path) -> str:
    """How it is run: what stands in eval/ itself as a script, what is deeper as a module."""
    is_module = len(script.parts) > 2
    return f"python -m {'.'.join(script.with_suffix('').parts)}" if is_module else f"python {script.as_posix()}"


def _parser_of(main: Callable[..., Any]) -> argparse.ArgumentParser:
    def stop(self: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _Found(self)

    original = argparse.ArgumentParser.parse_known_args  # parse_args goes through it
    argparse.ArgumentParser.parse_known_args = stop  # type: ignore[method-assign]
    try:
        main(*([[]] if inspect.signature(main).parameters else []))
    except _Found as found:
        return found.parser
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]
    raise AssertionError(f"{main.__module__}.main parses no arguments")


def observer_parsers() -> Iterator[argparse.ArgumentParser]:
    """`observer` and each of its subcommands that runs something."""
    parser = build_parser()
    yield parser
    yield from _subcommands(parser)


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                command.description = command.description or said.get(name)
                if command.get_default("run") is not None:
                    yield command
                yield from _subcommands(command)


def commands() -> str:
    """A section for each command, of `observer` first."""
    return "\n".join(f"## {parser.prog}\n\n```text\n{_help(parser)}```\n" for parser in [
        *observer_parsers(), *map(script_parser, script_paths())])  # fmt: skip


def _help(parser: argparse.ArgumentParser) -> str:
    """The same under every version of Python, which wrap usage differently, and in every terminal."""
    parser.formatter_class = partial(parser.formatter_class, width=110)  # type: ignore[assignment]
    parser.color = False  # type: ignore[attr-defined]  # of Python 3.14
    words = re.sub(r"\[[^]]*]", lambda option: option[0].replace(" ", "\xa0"), " ".join(parser.format_usage().split()))
    usage = textwrap.fill(words, 110, subsequent_indent="  ", break_on_hyphens=False).replace("\xa0", " ")
    parser.usage = argparse.SUPPRESS
    return f"{usage}\n\n{parser.format_help()}"
