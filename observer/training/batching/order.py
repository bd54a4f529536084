"""The order rows are trained in: chance, within what makes batches cheap; the same in a resumed run.

In a forest the rows of one exchange go into one batch, where it is computed once for all its tasks. Every batch gets
its share of short rows and of long ones, so that all have about as many tokens. Rows to be padded come in
batches of like length.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch.utils.data import Sampler

from observer.training.rows import TokenRow

T = TypeVar("T")

BATCHES_MADE_TOGETHER = 32
"""More of them means batches more alike in cost, and less chance."""


class RowSampler(Sampler[int]):
    """Row indices, shuffled anew each epoch from (seed, epoch) alone, so that skipping ahead is exact."""

    def __init__(self, rows: Sequence[TokenRow], batch_size: int, seed: int, *, are_padded: bool = False) -> None:
        self.lengths = [len(row) for row in rows]
        self.exchanges = [None if are_padded else row.exchange for row in rows]
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.make_batches = self._of_like_length if are_padded else self._of_like_cost

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self.seed}-{self.epoch}")
        units = self._units(range(len(self.lengths)))
        chance.shuffle(units)
        rows = [row for unit in units for row in unit]
        n_full = len(rows) // self.batch_size * self.batch_size
        batches: list[list[int]] = []
        for part in _cut(rows[:n_full], self.batch_size * BATCHES_MADE_TOGETHER):
            batches += self.make_batches(part, chance)
        chance.shuffle(batches)
        return iter([row for batch in batches for row in batch] + rows[n_full:])

    def _units(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows of each exchange together; a row without one is alone."""
        units: dict[object, list[int]] = {}
        for row in rows:
            exchange = self.exchanges[row]
            units.setdefault(("row", row) if exchange is None else exchange, []).append(row)
        return list(units.values())

    def _of_like_length(self, rows: list[int], chance: random.Random) -> list[list[int]]:
        return _cut(sorted(rows, key=self.lengths.__getitem__), self.batch_size)

    def _of_like_cost(self, rows: list[int], chance: random.Random) -> list[list[int]]:
        """One unit of every stretch of like units to each batch, and where a unit does not fit its rows one by one."""
        units = sorted(self._units(rows), key=lambda unit: (-len(unit), sum(self.lengths[row] for row in unit)))
        batches: list[list[int]] = [[] for _ in range(len(rows) // self.batch_size)]
        left: list[int] = []
        for stretch in _cut(units, len(batches)):
            chance.shuffle(stretch)
            for unit, batch in zip(stretch, sorted(batches, key=len), strict=False):
                (batch if len(batch) + len(unit) <= self.batch_size else left).extend(unit)
        for batch in batches:
            while len(batch) < self.batch_size:
                batch.append(left.pop())
        return batches


class SharedOrder(Sampler[int]):
    """Row indices for a data loader that deals whole batches to the processes in turn.

    Each step takes the rows that one process with the whole batch would take. A step with too few rows for all is
    filled up with `filler`, the index of a row without labels.
    """

    def __init__(self, order: RowSampler, n_processes: int, batch_size: int, filler: int) -> None:
        self.order, self.n_processes, self.batch_size, self.filler = order, n_processes, batch_size, filler
        self.set_epoch = order.set_epoch

    def __len__(self) -> int:
        step = self.n_processes * self.batch_size
        return -(-len(self.order) // step) * step

    def __iter__(self) -> Iterator[int]:
        for taken in _cut(list(self.order), self.n_processes * self.batch_size):
            for rank in range(self.n_processes):  # every n-th row: a batch sorted by length is shared out evenly
                share = taken[rank :: self.n_processes]
                yield from share + [self.filler] * (self.batch_size - len(share))


def _cut(items: list[T], length: int) -> list[list[T]]:
    return [items[start : start + length] for start in range(0, len(items), length)]
