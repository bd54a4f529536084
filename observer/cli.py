"""The `observer` command. Only the parser lives here; what a subcommand needs is imported when it is called."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from observer import __version__
from observer.console.arguments import positive
from observer.data.audit.command import add_audit_action
from observer.data.command import add_split_action
from observer.demo.command import add_demo_command
from observer.errors import run_cli
from observer.export.command import add_export_command
from observer.export.package_command import add_package_command
from observer.labeling.command import add_label_command
from observer.memory.command import add_memory_command
from observer.observe.command import add_observe_commands
from observer.runs.clean import add_clean_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed. Wrong usage leaves through SystemExit 2, as argparse does."""
    parser = build_parser()
    args = parser.parse_args(argv)
    return run_cli(lambda: args.run(args), debug=args.debug)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="observer",
        description="Grade conversations for long-term memory and extract what they state.",
        epilog="Training is a script of its own: python train_sft.py --config configs/nano.yaml",
    )
    parser.add_argument("--version", action="version", version=f"observer {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_observe_commands(commands)
    add_memory_command(commands)
    add_demo_command(commands)
    _add_data(commands)
    add_label_command(commands)
    add_export_command(commands)
    add_package_command(commands)
    add_clean_command(commands)
    doctor = commands.add_parser("doctor", help="tell what this machine has, and how to get what it lacks")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="make or check the rows to train on")
    actions = data.add_subparsers(required=True, metavar="ACTION")

    generate = actions.add_parser(
        "generate",
        help="write rows; the same number and seed give the same bytes",
        description="Write DIR/data/: raw rows of both tasks, and train and val made from them. Without --rows and "
        "--seed these are the shipped rows. Rows are streamed: a million need no more memory than a thousand.",
    )
    generate.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where the folder data/ is written (default: here)"
    )
    generate.add_argument("--rows", type=positive, metavar="N", help="rows of both tasks together (default: 3300)")
    generate.add_argument("--seed", type=int, help="another world (default: the seed of the shipped rows)")
    generate.set_defaults(run=_generate)

    add_audit_action(actions)
    add_split_action(actions)

    check = actions.add_parser("check", help="check raw rows or split rows; every fault with file and line")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSONL, such as data/utility_grading.jsonl")
    check.set_defaults(run=_check)


def _generate(args: argparse.Namespace) -> int:
    from observer.console.progress import show_progress
    from observer.data.synth.generate import SEED, SHIPPED_ROWS, write_data

    n_rows, start = args.rows or SHIPPED_ROWS, time.monotonic()
    with show_progress("generating", n_rows) as progress:
        write_data(args.out, n_rows, SEED if args.seed is None else args.seed, progress)
    seconds = time.monotonic() - start
    print(f"wrote {n_rows:,} rows to {args.out / 'data'} ({n_rows / seconds:,.0f} rows/s)")
    return 0


def _check(args: argparse.Namespace) -> int:
    from observer.data.check import check_files

    for line in check_files(args.files):
        print(line)
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from observer.doctor import examine, render

    findings = examine()
    print(render(findings))
    return int(any(finding.is_fatal for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
