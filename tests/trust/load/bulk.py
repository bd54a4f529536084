"""The bulk path on very many turns: every row once, memory flat, and at which rate.

Turns come from the generator behind the shipped rows, with another seed. The memory is that of the command's own
process, children included, sampled each second.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observer.data.synth.generate import stream_rows
from observer.files import write_row
from observer.paths import PROJECT_ROOT
from tests.trust.load.memory import MemorySampler, MemoryUse, memory_use

SEED = 100
"""Of the turns."""
BYTES_PER_ROW = 500
"""What memory may grow by: a run keeps the id of every row, so that it does none twice, and nothing else."""

_LONGEST = 64
"""Turns that come first; as many as the command takes at once."""


@dataclass(frozen=True)
class BulkRun:
    """One command over `n_in` rows. `n_missing` rows have no line in the output, `n_repeated` more than one.

    `n_truncated` answers reached the bound of their length, which is the model's doing: they keep what stood whole, and
    the command's exit code is 1. `n_faults` are the other lines that tell why there is no answer. `seconds` include
    start-up.
    """

    seconds: float
    n_in: int
    n_out: int
    n_missing: int
    n_repeated: int
    n_unknown: int
    n_truncated: int
    n_faults: int
    exit_code: int
    memory: MemoryUse

    @property
    def rows_per_s(self) -> float:
        return self.n_out / self.seconds

    @property
    def most_bytes_per_row(self) -> float | None:
        """The upper end of the memory slope's interval by the rate; None of a run too short for a slope."""
        return None if self.memory.high is None else self.memory.high * 1e6 / (60 * self.rows_per_s)

    @property
    def passed(self) -> bool:
        is_told = self.exit_code == int(self.n_truncated + self.n_faults > 0)
        wrong = self.n_missing or self.n_repeated or self.n_unknown or self.n_faults or not is_told
        return not wrong and self.most_bytes_per_row is not None and self.most_bytes_per_row < BYTES_PER_ROW


def run_bulk(task: str, n_rows: int, model: str, folder: Path) -> BulkRun:
    """One command on rows of its own; its progress goes to stderr."""
    source, target = folder / f"{task}.jsonl", folder / f"{task}-observed.jsonl"
    write_turns(source, n_rows, SEED)
    command = [sys.executable, "-m", "observer.cli", task, str(source), "--model", model, "--out", str(target)]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=sys.stderr, env=environment)
    try:
        with MemorySampler(process.pid, with_children=True) as memory:
            exit_code = process.wait()
    finally:
        process.kill()
    seconds = time.monotonic() - began
    counts = count_rows(target, n_rows)
    return BulkRun(seconds, n_rows, **counts, exit_code=exit_code, memory=memory_use(memory.samples))


def write_turns(path: Path, n_turns: int, seed: int) -> None:
    """Write synthetic turns with the ids `0`, `1`, … as OpenAI messages, in flat memory.

    The longest come first: a context grows until it holds the longest turn, in steps that are no leak.
    """
    longest = dict(heapq.nlargest(_LONGEST, enumerate(_conversations(n_turns, seed)), key=_size))
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        others = (turn for turn in enumerate(_conversations(n_turns, seed)) if turn[0] not in longest)
        for number, messages in itertools.chain(longest.items(), others):
            write_row(stream, {"id": str(number), "messages": messages})


def _size(turn: tuple[int, list[dict[str, Any]]]) -> int:
    return sum(len(message["content"]) for message in turn[1])


def _conversations(n_turns: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    for _, row in stream_rows(n_turns, seed):
        said = [("user", row.user_message), ("assistant", row.assistant_message)]
        earlier = [turn.model_dump() for turn in row.context]
        yield earlier + [{"role": role, "content": text} for role, text in said if text]


def count_rows(path: Path, n_rows: int) -> dict[str, int]:
    """What of the ids 0 to n_rows - 1 stands in an output, and how often."""
    seen: Counter[str] = Counter()
    n_truncated = n_faults = 0
    with path.open(encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            seen[row["id"]] += 1
            n_truncated += bool(row.get("truncated"))
            n_faults += bool(row.get("fault")) and not row.get("truncated")
    known = {str(number) for number in range(n_rows)}
    return {
        "n_out": sum(seen.values()),
        "n_missing": len(known - seen.keys()),
        "n_repeated": sum(count > 1 for count in seen.values()),
        "n_unknown": len(seen.keys() - known),
        "n_truncated": n_truncated,
        "n_faults": n_faults,
    }
