"""Raw rows of one's own -> the split files of a run: import, split, render, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from observer.config import Config, DataConfig
from observer.data.dataset import PlacedLines, row_faults
from observer.data.importing import Imported, read_raw_rows
from observer.data.splits import SplitRows, row_key, split_rows
from observer.errors import ObserverError, raise_all
from observer.files import write_jsonl
from observer.paths import TRAIN_JSONL, VAL_JSONL, DataPaths
from observer.prompts import training_row


@dataclass(frozen=True)
class OwnData:
    """What was read and how it was split; `train` and `val` are ready to be trained on."""

    imported: Imported
    split: SplitRows
    train: PlacedLines
    val: PlacedLines
    summary: str

    def files(self, paths: DataPaths) -> dict[Path, list[dict[str, Any]]]:
        """The lines of each file to write; quarantine and set-aside only where there is something in them."""
        lines = {
            paths.train: [row for _, row in self.train],
            paths.val: [row for _, row in self.val],
            paths.quarantine: [asdict(bad) for bad in self.imported.quarantined],
            paths.set_aside: [row.model_dump(mode="json", exclude_defaults=True) for row in self.split.set_aside],
        }
        return {path: rows for path, rows in lines.items() if rows}

    def write(self, paths: DataPaths) -> None:
        """Write the files, each atomically; one that an earlier split left and this one has not goes."""
        files = self.files(paths)
        for path, rows in files.items():
            write_jsonl(path, rows, is_private=True)
        for path in {paths.quarantine, paths.set_aside} - files.keys():
            path.unlink(missing_ok=True)


def own_data_of(config: Config) -> OwnData | None:
    """The rows that `data.utility` and `data.extraction` name, or None when neither is given."""
    data = config.data
    sources = [path for path in (data.utility, data.extraction) if path]
    if not sources:
        return None
    given = {"data.train": (data.train, TRAIN_JSONL), "data.val": (data.val, VAL_JSONL)}
    raise_all(
        [
            f"{key}: {path} would not be used, as the run's split files are made of data.utility and data.extraction; "
            "leave one or the other out"
            for key, (path, default) in given.items()
            if path != default
        ]
    )
    return make_own_data(sources, data, config.run.seed)


def make_own_data(sources: Sequence[Path], settings: DataConfig, seed: int) -> OwnData:
    """Import, split and render. Raises ObserverError when a row cannot be used or a part would be empty."""
    sources = list(dict.fromkeys(sources))
    imported = read_raw_rows(sources, settings.unknown_predicates)
    split = split_rows([placed.row for placed in imported.rows], settings.split, settings.val_fraction, seed)
    names = ", ".join(map(str, sources))
    empty = [part for part, rows in (("train", split.train), ("val", split.val)) if not rows]
    n_rows = len(imported.rows)
    if n_rows < 2:
        found = "one row" if n_rows else "no row"
        raise ObserverError(f"{names}: {found}, which cannot be split into train and val; give two rows or more")
    if empty:
        raise ObserverError(
            f"{names}: splitting {n_rows:,} rows by {settings.split} leaves {' and '.join(empty)} empty; "
            "take data.split=random, another data.val_fraction, or more rows"
        )
    places = {row_key(placed.row): placed.place for placed in imported.rows}
    train, val = ([(places[row_key(row)], training_row(row)) for row in rows] for rows in (split.train, split.val))
    raise_all([f"{place}: {fault}" for place, row in train + val for fault in row_faults(row)])
    lines = [f"raw rows   {imported.summary()}  [{names}]", f"split      {describe_split(split, settings)}"]
    return OwnData(imported, split, train, val, "\n".join(lines))


def describe_split(split: SplitRows, settings: DataConfig) -> str:
    """The size of each part, and what is new in val."""
    unseen = ", ".join(f"{count:,} {what}" for what, count in Counter(row.unseen for row in split.val).most_common())
    set_aside = f", {len(split.set_aside):,} set aside (they would show train what val holds out)"
    return (
        f"{settings.split}: {len(split.train):,} train, {len(split.val):,} val (unseen in train: {unseen})"
        f"{set_aside if split.set_aside else ''}"
    )
