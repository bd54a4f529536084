"""`observer data push`: rows as Parquet with their card, as a dataset repository of the Hub.

Each file is a configuration of its own, since their columns differ. The card is the author's; only where the files are
is added to it, so that `load_dataset("USER/NAME", "train")` finds them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from observer.errors import ObserverError, raise_all
from observer.files import read_jsonl, read_text
from observer.hub import CARD, Push, add_push_arguments, run_push


def add_push_action(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `push` to the actions of `observer data`."""
    push = actions.add_parser(
        "push",
        help="put rows on the Hugging Face Hub as Parquet",
        description="Send JSONL files to a dataset repository, each as a Parquet file and configuration of its name, "
        "with a dataset card. The plan is shown first. The token is HF_TOKEN, or that of `hf auth login`. Rows may "
        "hold conversations: the repository is private unless you say --public.",
    )
    push.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSONL, such as data/train.jsonl")
    push.add_argument("--card", type=Path, metavar="FILE.md", help="the dataset card, which names the licence "
        "(default: README.md beside the first file)")  # fmt: skip
    add_push_arguments(push)
    push.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        print(run_push(plan_push(args.files, args.card, Path(folder), args.repo, is_public=args.public), args.yes))
    return 0


def plan_push(files: Sequence[Path], card: Path | None, folder: Path, repo: str, *, is_public: bool = False) -> Push:
    """Write each file as Parquet into `folder`. Raises ObserverError for files without rows, or rows of no one shape,
    and without a card."""
    card = card or files[0].parent / CARD
    if not card.is_file():
        raise ObserverError(f"{card}: no such card; say there what the rows are and their licence, or name another")
    stems = [file.stem for file in files]
    raise_all([f"{file}: a second file of this name" for n, file in enumerate(files) if file.stem in stems[:n]])
    parquets = {f"data/{file.stem}.parquet": _as_parquet(file, folder / f"{file.stem}.parquet") for file in files}
    return Push(repo, "dataset", is_public, parquets, {CARD: with_files(read_text(card), stems, card)})


def with_files(card: str, stems: Sequence[str], place: str | Path = CARD) -> str:
    """The card, whose head says which file each configuration is; its author's own keys stay.

    Raises ObserverError, naming the `place`, for a head that is no YAML mapping.
    """
    import yaml

    head, text = {}, card
    if card.startswith("---\n") and (end := card.find("\n---", 3)) > 0:
        try:
            head, text = yaml.safe_load(card[4:end]) or {}, card[end + 4 :].lstrip("\n")
        except (yaml.YAMLError, ValueError) as error:
            what = getattr(error, "problem", error)
            raise ObserverError(f"{place}: its head is not valid YAML ({what}); correct it") from error
    if not isinstance(head, dict):
        raise ObserverError(f"{place}: its head is a {type(head).__name__}; keys such as `license: mit` are expected")
    head["configs"] = [{"config_name": stem, "data_files": f"data/{stem}.parquet"} for stem in stems]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def _as_parquet(file: Path, out: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    rows = [_full(row) or {} for _, row in read_jsonl(file)]
    if not rows:
        raise ObserverError(f"{file}: no rows; there is nothing to push")
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        columns = {name: pyarrow.array([row.get(name) for row in rows]) for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), out)
    except pyarrow.ArrowException as error:
        what = str(error).partition("\n")[0]
        raise ObserverError(
            f"{file}: a field is of several kinds ({what}); `observer data check` names the rows"
        ) from None
    return out


def _full(value: Any) -> Any:
    """Without empty objects, which Parquet has no column for: null, which every reader of ours takes for absent."""
    if isinstance(value, dict):
        return {key: _full(item) for key, item in value.items()} or None
    return [_full(item) for item in value] if isinstance(value, list) else value
