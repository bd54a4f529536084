"""`observer data`: the parsers, which import nothing heavy, and what the commands print."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from observer.console.arguments import positive, share
from observer.data.audit.command import add_audit_action
from observer.data.push import add_push_action

SPLIT_KINDS = ("random", "family", "name", "both")
UNKNOWN_PREDICATES = ("strict", "quarantine", "related")


def add_data_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="make, check, split or publish the rows to train on")
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

    add_push_action(actions)


def add_split_action(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `split` to the actions of `observer data`."""
    split = actions.add_parser("split", help="import raw rows, older ones too, and split them into train and val")
    split.add_argument("files", nargs="+", type=Path, metavar="RAW", help="JSONL of raw rows of either task")
    split.add_argument("--out", type=Path, required=True, metavar="DIR", help="where train.jsonl and val.jsonl go")
    split.add_argument(
        "--split", choices=SPLIT_KINDS, default="family", help="what val holds that train does not (default: family)"
    )
    split.add_argument("--val-fraction", type=share, default=0.2, metavar="F", help="share of val (default: 0.2)")
    split.add_argument("--seed", type=int, default=42, help="another split (default: 42)")
    split.add_argument(
        "--unknown-predicates", choices=UNKNOWN_PREDICATES, default="strict",
        help="stop at rows that cannot be used, set them aside, or make RELATED_TO of predicates (default: strict)",
    )  # fmt: skip
    split.set_defaults(run=_split)


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


def _split(args: argparse.Namespace) -> int:
    from observer.config import DataConfig
    from observer.data.own_data import make_own_data
    from observer.paths import DataPaths

    settings = DataConfig(
        split=args.split, val_fraction=args.val_fraction, unknown_predicates=args.unknown_predicates
    )  # fmt: skip
    own_data, paths = make_own_data(args.files, settings, args.seed), DataPaths(args.out)
    own_data.write(paths)
    print(own_data.summary)
    for path, rows in own_data.files(paths).items():
        print(f"wrote {path}: {len(rows):,} lines")
    return 0
