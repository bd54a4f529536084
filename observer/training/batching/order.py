"""The order rows are trained in: chance, within what makes batches cheap; the same in a resumed run.

Batches have rows of one task, whose instruction is then computed once a batch. Batches of both tasks compute both
instructions: 8 % more tokens a step at 16 rows, measured as 9 % fewer real tokens a second on the nano base.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import groupby

from torch.utils.data import Sampler

from observer.training.rows import TokenRow

BATCHES_MADE_TOGETHER = 32
"""More of them means batches more alike in cost, and less chance."""


class RowSampler(Sampler[int]):
    """Row indices, shuffled anew each epoch from (seed, epoch) alone, so that skipping ahead is exact.

    Rows that will be padded come in batches of like length. In a forest lengths cost nothing, so there a batch is a
    fair sample of its task, with its share of short rows and of long ones: all have about as many tokens.
    """

    def __init__(self, rows: Sequence[TokenRow], batch_size: int, seed: int, *, are_padded: bool = False) -> None:
        self.kinds = [(row.task, len(row)) for row in rows]
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.make_batches = group_by_length if are_padded else balance

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self.seed}-{self.epoch}")
        rows = list(range(len(self.kinds)))
        chance.shuffle(rows)
        n_full = len(rows) // self.batch_size * self.batch_size
        batches: list[list[int]] = []
        for part in _cut(rows[:n_full], self.batch_size * BATCHES_MADE_TOGETHER):
            batches += self._batches_of(sorted(part, key=self.kinds.__getitem__), chance)
        chance.shuffle(batches)
        return iter([row for batch in batches for row in batch] + rows[n_full:])

    def _batches_of(self, rows: list[int], chance: random.Random) -> list[list[int]]:
        """Rows sorted by kind -> batches; those that a task has too many make the last, of any task."""
        batches: list[list[int]] = []
        left: list[int] = []
        for _, group in groupby(rows, key=lambda row: self.kinds[row][0]):
            of_task = list(group)
            n_full = len(of_task) // self.batch_size * self.batch_size
            extra = set(chance.sample(of_task, len(of_task) - n_full))
            left += sorted(extra)
            batches += self.make_batches([row for row in of_task if row not in extra], self.batch_size, chance)
        return batches + _cut(left, self.batch_size)


def group_by_length(rows: list[int], batch_size: int, chance: random.Random) -> list[list[int]]:
    """Rows sorted by kind -> batches of neighbours."""
    return _cut(rows, batch_size)


def balance(rows: list[int], batch_size: int, chance: random.Random) -> list[list[int]]:
    """Rows sorted by length -> batches with one row of every stretch of lengths, in any order."""
    stretches = _cut(rows, max(1, len(rows) // batch_size))
    for stretch in stretches:
        chance.shuffle(stretch)
    batches = [list(batch) for batch in zip(*stretches, strict=True)]
    for batch in batches:
        chance.shuffle(batch)
    return batches


def _cut(rows: list[int], length: int) -> list[list[int]]:
    return [rows[start : start + length] for start in range(0, len(rows), length)]
