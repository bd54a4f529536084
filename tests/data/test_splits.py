"""Splits hold out what they say, put every row in exactly one part, and do not depend on the order of the rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer.cli import main as observer
from observer.config import SplitKind, UnknownPredicates
from observer.console.run import run_cli
from observer.data.command import SPLIT_KINDS, UNKNOWN_PREDICATES
from observer.data.dataset import read_split
from observer.data.importing import read_raw_rows
from observer.data.names import find_traits
from observer.data.splits import SplitRows, part_at_random, row_key, split_rows
from observer.files import write_jsonl
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, PROJECT_ROOT, DataPaths
from observer.schema import GradingRow, Label, RawRow
from tests.support.tiny_runs import raw_rows, write_tiny_run
from train_sft import main

KINDS: tuple[SplitKind, ...] = get_args(SplitKind)
NAMES = ["Ana", "Bo", "Chi", "Dev", "Eve", "Flo", "Gus", "Hal"]


def row(number: int, families: list[str], names: list[str]) -> RawRow:
    text = f"row {number} about {' and '.join(names) or 'nobody'}"
    return GradingRow(
        user_message=text, assistant_message="", label=Label.STORE, family="+".join(families) or None, names=names
    )


rows_of_any_kind = st.lists(
    st.tuples(
        st.lists(st.sampled_from([f"f{n}" for n in range(12)]), max_size=3, unique=True),
        st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
    ),
    max_size=60,
).map(lambda drawn: [row(number, *traits) for number, traits in enumerate(drawn)])


def parts_of(split: SplitRows) -> list[list[str]]:
    return [sorted(map(row_key, part)) for part in (split.train, split.val, split.set_aside)]


@given(rows_of_any_kind, st.sampled_from(KINDS), st.integers(0, 3), st.sampled_from([0.1, 0.2, 0.5]))
@settings(deadline=None, max_examples=150)
def test_what_is_held_out_never_shows_in_train(rows: list[RawRow], kind: SplitKind, seed: int, fraction: float) -> None:
    split = split_rows(rows, kind, fraction, seed)
    train, val = ({key: trait for key, trait in traits_by_key(rows).items() if key in part} for part in keys(split))
    families = {family for trait in train.values() for family in trait.families}
    names = {name for trait in train.values() for name in trait.names}
    for trait in val.values():
        if kind in ("family", "both"):
            assert not trait.families & families
        if kind == "both" or (kind == "name" and trait.names):
            assert trait.names - names
    if kind in ("random", "name"):
        assert not split.set_aside


def traits_by_key(rows: list[RawRow]) -> dict[str, Any]:
    return dict(zip(map(row_key, rows), find_traits(rows), strict=True))


def keys(split: SplitRows) -> tuple[set[str], set[str]]:
    return {row_key(row) for row in split.train}, {row_key(row) for row in split.val}


@given(rows_of_any_kind, st.sampled_from(KINDS))
@settings(deadline=None, max_examples=100)
def test_every_row_is_in_exactly_one_part(rows: list[RawRow], kind: SplitKind) -> None:
    split = split_rows(rows, kind, 0.2, 42)
    assert sorted(chain.from_iterable(parts_of(split))) == sorted(map(row_key, rows))


@given(rows_of_any_kind, st.sampled_from(KINDS), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_order_of_the_rows_does_not_matter(rows: list[RawRow], kind: SplitKind, rng: random.Random) -> None:
    assert split_rows(rows, kind, 0.2, 42) == split_rows(rng.sample(rows, len(rows)), kind, 0.2, 42)


@given(rows_of_any_kind, st.sampled_from(KINDS))
@settings(deadline=None, max_examples=100)
def test_unseen_says_what_train_does_not_show(rows: list[RawRow], kind: SplitKind) -> None:
    split = split_rows(rows, kind, 0.3, 42)
    shown = split.train
    for val in split.val:
        is_new_family = not any(set((val.family or "").split("+")) & set((r.family or "").split("+")) for r in shown)
        is_new_name = any(not any(name in r.names for r in shown) for name in val.names)
        if val.family:
            assert val.unseen == (
                "family" * is_new_family + "+" * (is_new_family and is_new_name) + "name" * is_new_name or "none"
            )
    assert all(r.unseen is None for r in split.train + split.set_aside)


def test_another_seed_is_another_split() -> None:
    rows = [row(n, [f"f{n}"], []) for n in range(50)]
    assert len({tuple(parts_of(split_rows(rows, "family", 0.2, seed))[1]) for seed in range(5)}) == 5


def test_a_random_split_keeps_the_shares_of_the_labels() -> None:
    rows = [GradingRow(user_message=f"{n}", assistant_message="", label=list(Label)[n % 10 // 4]) for n in range(100)]
    assert Counter(r.label for r in split_rows(rows, "random", 0.2, 1).val if isinstance(r, GradingRow)) == {
        Label.DISCARD: 8,
        Label.STORE: 8,
        Label.IMPORTANT: 4,
    }


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("strata", [["a", "b"], ["a", "a"], ["a", "b", "c"], ["a", "b", "b", "c"]])
def test_a_few_rows_give_both_parts(strata: list[str], fraction: float) -> None:
    parts = part_at_random(strata, fraction, random.Random(1))
    assert set(parts) == {"train", "val"} and parts == part_at_random(strata, fraction, random.Random(1))


def test_rows_without_a_family_are_grouped_by_their_turn_whatever_its_names() -> None:
    turns = ["I live in {}", "I work at {}", "{} is my sister", "do you like {}?", "hello"]
    rows = [
        GradingRow(user_message=turn.format(name), assistant_message=name, label=Label.STORE, names=[name])
        for turn in turns
        for name in NAMES
    ]
    families = [trait.families for trait in find_traits(rows)]
    assert len(set(families)) == len(turns)
    split = split_rows(rows, "family", 0.2, 42)
    assert (len(split.train), len(split.val), len(split.set_aside)) == (32, 8, 0)


def test_a_grading_row_has_the_names_that_other_rows_declare() -> None:
    plain = GradingRow(user_message="greet New York, and Ana's mum", assistant_message="", label=Label.STORE)
    others = [row(0, [], ["New York"]), row(1, [], ["ana"])]
    assert find_traits([plain, *others])[0].names == {("new", "york"), ("ana",)}


def test_families_joined_into_one_component_are_still_split() -> None:
    """A chain f0+f1, f1+f2, …: only where val meets train is a row torn."""
    rows = [row(n, [f"f{n}", f"f{n + 1}"], []) for n in range(200)]
    split = split_rows(rows, "family", 0.2, 42)
    assert len(split.val) >= 36 and len(split.set_aside) <= 10


def test_two_families_are_one_part_each_whatever_the_fraction() -> None:
    rows = [row(n, [f"f{n % 2}"], []) for n in range(10)]
    split = split_rows(rows, "family", 0.2, 42)
    assert (len(split.train), len(split.val)) == (5, 5)


@pytest.fixture(scope="module")
def shipped() -> list[RawRow]:
    imported = read_raw_rows([PROJECT_ROOT / GRADING_JSONL, PROJECT_ROOT / EXTRACTION_JSONL])
    return [placed.row for placed in imported.rows]


@pytest.mark.parametrize(
    ("kind", "val_share", "most_set_aside"),
    [("random", (0.19, 0.21), 0), ("family", (0.19, 0.21), 0.2), ("name", (0.19, 0.21), 0), ("both", (0.1, 0.3), 0.5)],
)
def test_shipped_rows_can_be_split_every_way(
    kind: SplitKind, val_share: tuple[float, float], most_set_aside: float, shipped: list[RawRow]
) -> None:
    split = split_rows(shipped, kind, 0.2, 42)
    kept = len(split.train) + len(split.val)
    assert val_share[0] <= len(split.val) / kept <= val_share[1]
    assert len(split.set_aside) <= most_set_aside * len(shipped)
    if kind == "both":
        assert {r.unseen for r in split.val} == {"family+name"}


# The command and the recipe


def first_version(raw: dict[str, Any]) -> dict[str, Any]:
    """A row of ours as the first version would have written it."""
    kept = {key: value for key, value in raw.items() if key not in ("id", "family")}
    if "label" in kept:
        return kept | {"reasoning": "because", "confidence": 0.9}
    kept["entities"] = [e | {"attributes": {"known": True}} for e in kept["entities"]]
    return kept | {
        "relationships": [r | {"predicate": "MOVED_TO", "temporal": "current"} for r in kept["relationships"]]
    }


def write_first_version(folder: Path) -> tuple[Path, Path]:
    rows = [first_version(raw) for raw in raw_rows(40)]
    utility, extraction = folder / "utility.jsonl", folder / "extraction.jsonl"
    write_jsonl(utility, [raw for raw in rows if "label" in raw])
    write_jsonl(extraction, [raw for raw in rows if "label" not in raw])
    return utility, extraction


def observer_split(*arguments: str) -> int:
    return observer(["data", "split", *arguments])


def test_the_command_offers_what_the_config_knows() -> None:
    assert get_args(SplitKind) == SPLIT_KINDS
    assert get_args(UnknownPredicates) == UNKNOWN_PREDICATES


def test_the_command_writes_split_files_and_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    utility, extraction = write_first_version(tmp_path)
    paths = DataPaths(tmp_path / "out")
    arguments = [str(utility), str(extraction), "--out", str(paths.root), "--split", "random"]
    extraction.write_text(extraction.read_text() + "nonsense\n")
    assert observer_split(*arguments) == 1
    assert f"{extraction}:21: not JSON" in capsys.readouterr().err and not paths.root.exists()

    assert observer_split(*arguments, "--unknown-predicates", "quarantine") == 0
    printed = capsys.readouterr().out
    assert "40 rows; 20 repaired" in printed and "1 quarantined" in printed and "random: 32 train, 8 val" in printed
    assert (len(read_split(paths.train)), len(read_split(paths.val))) == (32, 8)
    assert json.loads(paths.quarantine.read_text())["place"] == f"{extraction}:21"
    assert all("unseen" in line for line in read_split(paths.val))

    extraction.write_text(extraction.read_text().removesuffix("nonsense\n"))
    assert observer_split(*arguments) == 0
    assert not paths.quarantine.exists(), "an earlier run's quarantine does not stay"


def test_rows_that_leave_a_part_empty_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.jsonl"
    for rows, fault in (
        (raw_rows(2)[1:], "one row, which cannot be split into train and val; give two rows or more"),
        (raw_rows(2)[1:] * 2, "splitting 2 rows by family leaves val empty; take data.split=random"),
    ):
        write_jsonl(path, rows)
        assert observer_split(str(path), "--out", str(tmp_path / "out")) == 1
        assert f"{path}: {fault}" in capsys.readouterr().err


def run(*arguments: str) -> int:
    return run_cli(lambda: main(arguments), debug=False)


def own_data_run(folder: Path, base: Path) -> list[str]:
    """Arguments of a tiny run over first-version files, without split files of its own."""
    config = write_tiny_run(folder, base)
    text = config.read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if not line.startswith("data:")]
    utility, extraction = write_first_version(folder)
    config.write_text("\n".join([*kept, f"data: {{utility: {utility}, extraction: {extraction}, split: random}}\n"]))
    return ["--config", str(config), "--set", "training.max_steps=2"]


@pytest.mark.parametrize(
    ("override", "code", "told"),
    [
        ("run.seed=1", 0, ["40 rows; 20 repaired", "32 train, 8 val", "[{folder}/outputs/tiny/data/train.jsonl]"]),
        ("data.more=[{folder}/more.jsonl]", 0, ["train      34 rows", "tiny/data/train.jsonl, {folder}/more.jsonl]"]),
        ("data.max_length=100", 1, ["extraction.jsonl:1: "]),
        ("data.val={folder}/val.jsonl", 1, ["data.val: "]),
    ],
    ids=["the split", "more rows beside one's own", "too long a row", "split files beside raw rows"],
)
def test_a_dry_run_says_what_it_would_train_on_and_writes_nothing(
    override: str, code: int, told: list[str], tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = own_data_run(tmp_path, tiny_model)
    more = [raw_rows(3)[0] | {"source": source} for source in ("life/train", "life/train", "life/val")]
    write_jsonl(tmp_path / "more.jsonl", more)
    assert run(*arguments, "--dry-run", "--set", override.format(folder=tmp_path)) == code
    printed = "".join(capsys.readouterr())
    assert all(words.format(folder=tmp_path) in printed for words in told), printed
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_rows_of_the_first_version_train_unchanged(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = own_data_run(tmp_path, tiny_model)
    assert run(*arguments) == 0
    root = tmp_path / "outputs/tiny"
    assert len(read_split(root / "data/train.jsonl")) == 32
    assert (root / "reports/summary.md").exists()
    assert "data: done in" in capsys.readouterr().out
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "data: done before" in printed and "train: done before" in printed
