"""`observer data audit`: the parser, and what the command prints and writes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from observer.files import write_json, write_text
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, NANO_BASE

DEFAULT_FILES = [GRADING_JSONL, EXTRACTION_JSONL]
DEFAULT_TOKENIZER = NANO_BASE / "tokenizer.json"
DEFAULT_MAX_LENGTH = 2048
MAX_SHOWN = 50
"""Breaks of one rule that are printed."""


def add_audit_action(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = actions.add_parser("audit", help="measure leaks, conflicts, grounding, balance and shortcuts of rows")
    audit.add_argument(
        "files", nargs="*", type=Path, default=DEFAULT_FILES, metavar="FILE",
        help="raw rows or split rows as JSONL (default: the shipped raw rows)",
    )  # fmt: skip
    audit.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with examples as file:line")
    audit.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    audit.add_argument(
        "--tokenizer", type=Path, default=DEFAULT_TOKENIZER, metavar="FILE",
        help="the tokenizer.json that counts tokens (default: the nano base's)",
    )  # fmt: skip
    audit.add_argument(
        "--max-length", type=int, default=DEFAULT_MAX_LENGTH, metavar="N",
        help="tokens of prompt and completion that a row may have (default: 2048)",
    )  # fmt: skip
    audit.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the audit and write what was asked for; 1 when a hard rule is broken."""
    from observer.data.audit.audit import run_audit
    from observer.data.audit.report import to_json, to_markdown

    audit = run_audit(args.files, args.tokenizer, args.max_length, _say)
    command = command_line(args)
    page = to_markdown(audit, command)
    print(page, end="")
    if args.markdown:
        write_text(args.markdown, page)
    if args.json:
        write_json(args.json, to_json(audit, command))
    for found in audit.findings:
        for line in found.lines[:MAX_SHOWN]:
            _say(f"{found.rule}: {line}")
        if len(found.lines) > MAX_SHOWN:
            _say(f"{found.rule}: … and {len(found.lines) - MAX_SHOWN:,} more")
    return int(not audit.is_sound)


def command_line(args: argparse.Namespace) -> str:
    """The command that prints the same page; what it writes is left out."""
    words = ["observer", "data", "audit"]
    if args.files != DEFAULT_FILES:
        words += [path.as_posix() for path in args.files]
    if args.tokenizer != DEFAULT_TOKENIZER:
        words += ["--tokenizer", args.tokenizer.as_posix()]
    if args.max_length != DEFAULT_MAX_LENGTH:
        words += ["--max-length", str(args.max_length)]
    return shlex.join(words)


def _say(line: str) -> None:
    print(f"audit: {line}", file=sys.stderr)
