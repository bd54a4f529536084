"""The subcommands `observer grade`, `extract` and `observe`. What they need is imported when one is called."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from observer.console.arguments import positive, seconds

if TYPE_CHECKING:
    from datetime import datetime

    from observer.client import Observer
    from observer.observation import Asked
    from observer.turns.inputs import Reading

HELP: dict[Asked, str] = {
    "grade": "tell whether exchanges are worth remembering: DISCARD, STORE or IMPORTANT",
    "extract": "tell who and what exchanges state, as entities and relationships",
    "observe": "grade, then extract from what is not DISCARD",
}
DESCRIPTION = """\
Each INPUT is a file, - for standard input, or else the text of a user message. Files hold JSON lines (OpenAI `messages`
or raw rows, with `id` and `at` if they have them) or conversations of USER: and ASSISTANT: lines, mixed freely.
On a terminal the answer is a table; in a pipe and in --out it is JSON, an observation a line.
"""
EPILOG = """\
examples:
  observer observe "I left Siemens, I'm at Bosch now"
  observer observe chats.jsonl > observations.jsonl
  observer observe chats.jsonl --out observations.jsonl --memory memory.sqlite
  tail -f chats.jsonl | observer grade - --model ollama:qwen3-observer
  observer observe corpus.jsonl --ray --workers 4 --out corpus-observed/
"""
BULK_HELP = """\
A large corpus by several models at once, on Ray Data (pip install -e '.[bulk]'). --out is a folder of parts,
part-00000.jsonl and so on; together they are what the command without --ray writes. The same command resumes a run that
was stopped: finished parts are kept. docs/bulk.md has more.
"""


def add_observe_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for task, help_text in HELP.items():
        command = commands.add_parser(
            task,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.\n\n{DESCRIPTION}",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("input", nargs="*", metavar="INPUT", help="text, FILE or - (default: -)")
        _add_model(command, task)
        _add_reading(command)
        _add_output(command, task)
        _add_bulk(command)
        command.set_defaults(run=_run, task=task, memory=None, keep_above=None)  # those that a task has no use for


def _add_model(command: argparse.ArgumentParser, task: Asked) -> None:
    add = command.add_argument_group("model").add_argument
    add("--model", metavar="SPEC", help="FILE.gguf, a run's folder, ollama:NAME or hf:FOLDER "
        "(default: the newest run in outputs/, else ollama:qwen3-observer)")  # fmt: skip
    add("--threads", type=positive, metavar="N", help="threads of a model in this process (default: all cores)")
    add("--n-ctx", type=positive, metavar="N", help="most tokens of a prompt and its answer, for a model in this "
        "process; of more the oldest context is left out (default: what the model was made for)")  # fmt: skip
    add("--timeout", type=seconds, default=120.0, metavar="S", help="seconds for one answer of a server "
        "(default: %(default)g)")  # fmt: skip
    if task != "extract":
        add("--keep-above", type=float, metavar="P", help="DISCARD unless the other labels together are likelier than "
            "P, 0 to 1: lower keeps more (default: the likeliest label); docs/evaluation.md")  # fmt: skip


def _add_reading(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("reading").add_argument
    add("--every-turn", action="store_true", help="every user turn of a conversation, not only the last")
    add("--at", type=_time, metavar="TIME", help="when rows without a time of their own were said (ISO 8601)")
    add("--at-field", default="", metavar="NAME", help="where rows keep their time, if not in `at`; messages too")
    add("--max-characters", type=positive, default=20_000, metavar="N", help="refuse longer exchanges, their "
        "context not counted (default: 20000)")  # fmt: skip


def _add_output(command: argparse.ArgumentParser, task: Asked) -> None:
    add = command.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="FILE", help="append observations here; the same command resumes, and "
        "asks nothing twice (with --ray: a folder)")  # fmt: skip
    if task != "grade":
        add("--memory", type=Path, metavar="FILE.sqlite", help="keep what is stated in this memory; made when missing")
    add("--json", action="store_true", help="JSON on a terminal too")


def _add_bulk(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("past one machine", BULK_HELP).add_argument
    add("--ray", action="store_true", help="observe on a Ray cluster, into a folder")
    add("--workers", type=positive, metavar="N", help="models, each in a process of its own (default: one for 4 cores, "
        "at least 2)")  # fmt: skip
    add("--rows-per-part", type=positive, metavar="N", help="what a stop may cost each worker (default: 512)")
    add("--ray-address", metavar="HOST:PORT", help="a cluster that is there, seen from one of its machines, or auto "
        "(default: RAY_ADDRESS, else one on this machine that ends with the run)")  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    return _run_bulk(args) if args.ray else _run_here(args)


def _run_bulk(args: argparse.Namespace) -> int:
    import os

    from observer.errors import raise_all
    from observer.observe.bulk.dataset import ROWS_PER_PART, BulkOptions
    from observer.observe.bulk.run import BulkRun
    from observer.observe.run import default_model
    from observer.observe.tally import run_to_end

    faults = [] if args.out else ["--ray: name a folder for the parts with --out"]
    if args.memory:
        faults.append("--memory: a memory takes rows in their order; give it the parts after the run (docs/bulk.md)")
    faults += [f"{option}: goes without --ray" for option in _given(args, "n_ctx", "keep_above")]
    raise_all(faults)
    options = BulkOptions(
        task=args.task,
        inputs=tuple(args.input),
        out=args.out,
        spec=args.model or default_model(),
        reading=_reading(args),
        at=args.at,
        rows_per_part=args.rows_per_part or ROWS_PER_PART,
        n_workers=args.workers,
        n_threads=args.threads,
        timeout_s=args.timeout,
        address=args.ray_address or os.environ.get("RAY_ADDRESS"),
    )
    return run_to_end(BulkRun(options))


def _run_here(args: argparse.Namespace) -> int:
    import contextlib
    import os
    import sys

    from observer.errors import raise_all
    from observer.memory.store import Store
    from observer.observe.observations_file import open_ledger
    from observer.observe.reading import Reader
    from observer.observe.run import Session, default_model
    from observer.observe.tally import Tally, run_to_end

    raise_all([f"{option}: goes with --ray" for option in _given(args, "workers", "rows_per_part", "ray_address")])
    reader = Reader(args.input, _reading(args), args.at)
    spec = args.model or default_model()

    def open_observer() -> Observer:
        from observer.client import Observer

        print(f"model: {spec}", file=sys.stderr)
        limits = {"n_threads": args.threads, "n_ctx": args.n_ctx, "timeout_s": args.timeout}
        return Observer(spec, keep_above=args.keep_above, **limits)

    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(open_ledger(args.out, args.task)) if args.out else None
        memory = stack.enter_context(Store(args.memory)) if args.memory else None
        is_pretty = sys.stdout.isatty() and not args.json
        try:
            return run_to_end(Session(Tally(args.task, args.out), reader, open_observer, ledger, memory, is_pretty))
        except BrokenPipeError:  # `| head` has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _given(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of the options that stand on the command line, as they are written there."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]


def _reading(args: argparse.Namespace) -> Reading:
    from observer.turns.inputs import Reading

    return Reading(args.every_turn, args.max_characters, args.at_field, counts_context=False)


def _time(text: str) -> datetime | None:
    from observer.observation import read_time

    try:
        return read_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
