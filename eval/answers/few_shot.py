"""Few-shot examples: train rows shown to a model as earlier questions with their answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from eval.answers.rows import Row, answer_of, of_task
from observer.errors import ObserverError
from observer.prompts import Example, Examples, Task, exchange_of


def draw_examples(train_rows: Sequence[Row], rows: Sequence[Row], n: int, seed: int = 0) -> Examples:
    """`n` examples for each task that `rows` ask, of families and exchanges that `rows` do not hold.

    Grading shows every label before any twice. Raises ObserverError when train has too few of them.
    """
    shown = {exchange_of(row) for row in rows} | {row.get("family") for row in rows} - {None}
    free = [row for row in train_rows if not shown & {exchange_of(row), row.get("family")}]
    chance = random.Random(seed)
    return {task: _draw(task, of_task(free, task), n, chance) for task in Task if of_task(rows, task)}


def _draw(task: Task, rows: Sequence[Row], n: int, chance: random.Random) -> list[Example]:
    if len(rows) < n:
        raise ObserverError(
            f"few-shot examples: {n} wanted for task {task}, {len(rows)} train rows are of families that the evaluated "
            "rows do not show; ask for fewer or name other rows with --train"
        )
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in chance.sample(rows, len(rows)):
        kinds[answer_of(row) if task == Task.GRADE else ""].append(row)
    piles = [kinds[kind] for kind in sorted(kinds)]
    chosen = [pile[depth] for depth in range(len(rows)) for pile in piles if depth < len(pile)][:n]
    chance.shuffle(chosen)  # no label always stands last, where it counts most
    return [Example(exchange_of(row), answer_of(row)) for row in chosen]
