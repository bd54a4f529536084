"""`observer data split`: raw rows of one's own become train.jsonl and val.jsonl. The parser imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

SPLIT_KINDS = ("random", "family", "name", "both")
UNKNOWN_PREDICATES = ("strict", "quarantine", "related")


def add_split_action(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `split` to the actions of `observer data`."""
    split = actions.add_parser("split", help="import raw rows, older ones too, and split them into train and val")
    split.add_argument("files", nargs="+", type=Path, metavar="RAW", help="JSONL of raw rows of either task")
    split.add_argument("--out", type=Path, required=True, metavar="DIR", help="where train.jsonl and val.jsonl go")
    split.add_argument(
        "--split", choices=SPLIT_KINDS, default="family", help="what val holds that train does not (default: family)"
    )
    split.add_argument("--val-fraction", type=_fraction, default=0.2, metavar="F", help="share of val (default: 0.2)")
    split.add_argument("--seed", type=int, default=42, help="another split (default: 42)")
    split.add_argument(
        "--unknown-predicates", choices=UNKNOWN_PREDICATES, default="strict",
        help="stop at rows that cannot be used, set them aside, or make RELATED_TO of predicates (default: strict)",
    )  # fmt: skip
    split.set_defaults(run=_split)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


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
