"""Splits raw rows into train and val by what val is to hold that train never shows: wording, names, or both.

The result depends on the rows, the kind, the fraction and the seed, never on the order of the rows.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from observer.config import SplitKind
from observer.data.names import Traits, Words, find_traits
from observer.schema import GradingRow, RawRow, Unseen

Part = Literal["train", "val", "set aside"]


@dataclass(frozen=True)
class SplitRows:
    """Every row is in exactly one part. Val rows carry `unseen`; `set_aside` would show train what val holds out."""

    train: list[RawRow]
    val: list[RawRow]
    set_aside: list[RawRow]


def split_rows(rows: Sequence[RawRow], kind: SplitKind, val_fraction: float, seed: int) -> SplitRows:
    """Split by `kind`; val gets about `val_fraction` of the rows that are kept, where the rows allow it."""
    ordered = sorted(rows, key=row_key)
    traits = find_traits(ordered)
    rng = random.Random(f"{seed}/{kind}")
    if kind == "random":
        parts = part_at_random([stratum(row) for row in ordered], val_fraction, rng)
    else:
        parts = PART_BY[kind](traits, val_fraction, rng)
    by_part: dict[Part, list[RawRow]] = {"train": [], "val": [], "set aside": []}
    shown = [trait for trait, part in zip(traits, parts, strict=True) if part == "train"]
    families = frozenset[str]().union(*(trait.families for trait in shown))
    names = frozenset[Words]().union(*(trait.names for trait in shown))
    for row, trait, part in zip(ordered, traits, parts, strict=True):
        unseen = unseen_of(trait, families, names) if part == "val" else None
        by_part[part].append(row.model_copy(update={"unseen": unseen}))
    return SplitRows(by_part["train"], by_part["val"], by_part["set aside"])


def unseen_of(trait: Traits, families: Collection[str], names: Collection[Words]) -> Unseen:
    """What of a row is not among the families and names of train; a name counts when one of its names is new."""
    is_new_family = not any(family in families for family in trait.families)
    is_new_name = any(name not in names for name in trait.names)
    if is_new_family:
        return "family+name" if is_new_name else "family"
    return "name" if is_new_name else "none"


def row_key(row: RawRow) -> str:
    """An order of rows that comes from what they say."""
    content = row.model_dump_json(exclude={"id", "source", "unseen"})
    return hashlib.sha256(content.encode()).hexdigest() + (row.id or "")


def stratum(row: RawRow) -> str:
    return str(row.label) if isinstance(row, GradingRow) else f"extraction {bool(row.relationships)}"


def part_at_random(strata: Sequence[str], fraction: float, rng: random.Random) -> list[Part]:
    """The fraction of each stratum, such as a label, as near as whole rows allow; of two rows or more both parts."""
    parts: list[Part] = ["train"] * len(strata)
    by_stratum: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(strata):
        by_stratum[name].append(index)
    for name in sorted(by_stratum):
        indices = by_stratum[name]
        for index in rng.sample(indices, round(fraction * len(indices))):
            parts[index] = "val"
    if len(set(parts)) == 1 and len(parts) > 1:  # each stratum has few rows
        largest = max(sorted(by_stratum), key=lambda name: len(by_stratum[name]))
        parts[rng.choice(by_stratum[largest])] = "train" if parts[0] == "val" else "val"
    return parts


def part_by_family(traits: Sequence[Traits], fraction: float, rng: random.Random) -> list[Part]:
    """Val has held-out families alone, train none of them; rows that mix both are set aside."""
    held = hold_out_families([trait.families for trait in traits], fraction, rng)
    return [_part(trait.families <= held, not trait.families & held) for trait in traits]


def part_by_name(traits: Sequence[Traits], fraction: float, rng: random.Random) -> list[Part]:
    """Rows with a held-out name are val; of the rows without any name a random share is."""
    rows_of: dict[Words, set[int]] = defaultdict(set)
    for index, trait in enumerate(traits):
        for name in trait.names:
            rows_of[name].add(index)
    wanted = fraction * sum(bool(trait.names) for trait in traits)
    val: set[int] = set()
    for name in rng.sample(sorted(rows_of), len(rows_of)):
        more = rows_of[name] - val
        if len(val) + len(more) <= wanted:
            val |= more
    nameless = [index for index, trait in enumerate(traits) if not trait.names]
    val |= set(rng.sample(nameless, round(fraction * len(nameless))))
    return ["val" if index in val else "train" for index in range(len(traits))]


def part_by_both(traits: Sequence[Traits], fraction: float, rng: random.Random) -> list[Part]:
    """Val rows have held-out families alone and a held-out name, train rows neither; the rest is set aside.

    A name is held out when that costs train fewer rows than one row of val is worth.
    """
    families = hold_out_families([trait.families for trait in traits], fraction, rng)
    candidates = [trait.names for trait in traits if trait.families <= families]
    cost = Counter(name for trait in traits if not trait.families & families for name in trait.names)
    names: set[Words] = set()
    for own in rng.sample(candidates, len(candidates)):
        if own and not own & names:
            cheapest = min(sorted(own), key=lambda name: cost[name])
            names |= {cheapest} if cost[cheapest] <= (1 - fraction) / fraction else set()
    return [
        _part(
            trait.families <= families and not trait.names.isdisjoint(names),
            trait.families.isdisjoint(families) and trait.names.isdisjoint(names),
        )
        for trait in traits
    ]


PART_BY: dict[SplitKind, Callable[[Sequence[Traits], float, random.Random], list[Part]]] = {
    "family": part_by_family,
    "name": part_by_name,
    "both": part_by_both,
}


def hold_out_families(rows: Sequence[frozenset[str]], fraction: float, rng: random.Random) -> frozenset[str]:
    """Families until the rows that have no others are `fraction` of the rows kept.

    Rows may join families, so a family most of whose partners are held out comes next: fewer rows are torn apart.
    """
    growth = _Growth(rows)
    order = rng.sample(sorted(growth.rows_of), len(growth.rows_of))
    while order and growth.n_val < fraction * growth.n_kept:
        family = growth.next_linked() or order.pop()
        if growth.n_val + len(growth.rows_of[family]) <= fraction * len(rows):
            growth.hold(family)
        else:
            growth.refused.add(family)
    if not growth.held and len(growth.rows_of) > 1:  # each is too large: the smallest then
        growth.hold(min(sorted(growth.rows_of), key=lambda family: len(growth.rows_of[family])))
    return frozenset(growth.held)


class _Growth:
    """A growing set of held-out families, with what it does to the rows."""

    def __init__(self, rows: Sequence[frozenset[str]]) -> None:
        self.rows = rows
        self.rows_of: dict[str, list[int]] = defaultdict(list)
        for index, families in enumerate(rows):
            for family in families:
                self.rows_of[family].append(index)
        self.held: set[str] = set()
        self.refused: set[str] = set()
        self.n_held = [0] * len(rows)
        self.n_val, self.n_kept = 0, len(rows)
        self.torn: Counter[str] = Counter()
        """family not held -> its rows in which another family is."""

    def hold(self, family: str) -> None:
        if family in self.held:
            return
        self.held.add(family)
        del self.torn[family]
        for index in self.rows_of[family]:
            self.n_held[index] += 1
            size = len(self.rows[index])
            self.n_val += self.n_held[index] == size
            self.n_kept += (self.n_held[index] == size) - (self.n_held[index] == 1)
            if self.n_held[index] == 1:
                self.torn.update(self.rows[index] - self.held)

    def next_linked(self) -> str | None:
        """The family of which the largest part is torn, when that is half of its rows or more."""
        candidates = sorted(self.torn.keys() - self.refused)
        best = max(candidates, key=lambda family: self.torn[family] / len(self.rows_of[family]), default=None)
        return best if best and 2 * self.torn[best] >= len(self.rows_of[best]) else None


def _part(is_val: bool, is_train: bool) -> Part:
    return "val" if is_val else "train" if is_train else "set aside"
