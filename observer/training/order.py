"""The order rows are trained in: rows of one task and like length together, the same in a resumed run.

Rows of one task share their instruction, which the loss then computes once a batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from observer.training.rows import TokenRow

BATCHES_SORTED_TOGETHER = 32
"""More of them means less padding and less chance; at 32 under 2 % of a batch is padding."""


class LengthGroupedSampler(Sampler[int]):
    """Row indices, shuffled anew each epoch from (seed, epoch) alone, so that skipping ahead is exact."""

    def __init__(self, rows: Sequence[TokenRow], batch_size: int, seed: int) -> None:
        self.kinds = [(row.task, len(row)) for row in rows]
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self.seed}-{self.epoch}")
        rows = list(range(len(self.kinds)))
        chance.shuffle(rows)
        n_full = len(rows) // self.batch_size * self.batch_size
        batches = [batch for part in _cut(rows[:n_full], self.batch_size * BATCHES_SORTED_TOGETHER)
                   for batch in _cut(sorted(part, key=self.kinds.__getitem__), self.batch_size)]  # fmt: skip
        chance.shuffle(batches)
        return iter([row for batch in batches for row in batch] + rows[n_full:])


def _cut(rows: list[int], length: int) -> list[list[int]]:
    return [rows[start : start + length] for start in range(0, len(rows), length)]
