"""The argparse parsers of every command, found without running one, and a page of what they take.

The tables are rendered from the parsers' own actions, so that they are the same under every version of Python.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from docs.markdown import cell
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


def observer_parsers() -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """`observer` and each of its subcommands that runs something, with the one line that its parent says of it."""
    parser = build_parser()
    yield parser, ""
    yield from _subcommands(parser)


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                if command.get_default("run") is not None:
                    yield command, said.get(name, "")
                yield from _subcommands(command)


def render_parser(parser: argparse.ArgumentParser, said: str) -> str:
    """A section: heading, description, a table of arguments, and the epilog as it stands."""
    parts = [f"## {parser.prog}", _prose(parser.description or said, parser)]
    told = [action for action in parser._actions if _is_told(action)]
    told.sort(key=lambda action: bool(action.option_strings))
    if told:
        parts.append("\n".join(["| argument | |", "|---|---|", *(_row(action, parser) for action in told)]))
    if parser.epilog:
        parts.append(_as_it_stands(parser.epilog))
    return "\n\n".join(part for part in parts if part)


def _is_told(action: argparse.Action) -> bool:
    is_help = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return not is_help and action.help is not argparse.SUPPRESS


def _row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    name = ", ".join(action.option_strings) or _value(action)
    taken = f" {_value(action)}" if action.option_strings and action.nargs != 0 else ""
    told = (action.help or "") % {**vars(action), "prog": parser.prog}
    default = _default(action)
    if default and default not in told:
        told = f"{told} (default: {default})".strip()
    if action.option_strings and action.required:
        told = f"{told} (required)".strip()
    return f"| `{name}{taken}` | {cell(told)} |"


def _value(action: argparse.Action) -> str:
    """What stands for the value in usage: `N`, `{a,b}`, `FILE …`, `[RUN]`."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else ""
    fallback = action.dest.upper() if action.option_strings else action.dest
    name = action.metavar or choices or fallback
    name = " ".join(name) if isinstance(name, tuple) else name
    shapes = {"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} …"}
    return shapes.get(str(action.nargs), name).replace("|", "\\|")


def _default(action: argparse.Action) -> str:
    value = action.default
    if value is None or value is argparse.SUPPRESS or isinstance(value, bool) or value == []:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _prose(text: str, parser: argparse.ArgumentParser) -> str:
    """A description as paragraphs, or as it stands where its layout carries meaning."""
    text = inspect.cleandoc(text % {"prog": parser.prog} if "%(" in text else text)
    if any(line.startswith(" ") for line in text.splitlines()):
        return _as_it_stands(text)
    return text if "\n" in text else f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _as_it_stands(text: str) -> str:
    return f"```text\n{text.strip()}\n```"
