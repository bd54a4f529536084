"""Extraction with drafts beside one token a step, in turns on the same rows: seconds, accepted drafts, equal answers.

    python -m eval.benchmarks.drafting outputs/RUN/gguf/NAME-q8_0.gguf --rows 64 --n-seq 16
    python -m eval.benchmarks.drafting outputs/RUN/gguf/NAME-q8_0.gguf --rows 16 --n-seq 1

Both ways stay loaded. What an answer was expected to say is learned from the answers before, so the first round is
told apart. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.answers.rows import of_task, rows_of_split, spread
from observer.console.run import run_cli
from observer.engine.engine import Engine
from observer.observation import Completion
from observer.prompts import Task, exchange_of


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    rows = of_task(rows_of_split(args.split), Task.EXTRACT)
    exchanges = [exchange_of(rows[index]) for index in spread(len(rows), args.rows)]
    options: dict[str, Any] = {"n_seq": args.n_seq, "n_threads": args.threads, "max_new_tokens": args.max_new_tokens}
    with Engine(args.model, drafts=False, **options) as plain, Engine(args.model, **options) as drafting:
        for engine in (plain, drafting):
            engine.generate(Task.EXTRACT, exchanges[:2], max_new_tokens=2)  # opens the context
        rounds = [measure(plain, drafting, exchanges, is_odd=bool(number % 2)) for number in range(args.rounds)]
    for number, found in enumerate(rounds, 1):
        print(f"round {number}: {found['times_as_fast']:.2f} times as fast, {found['accepted']:.0%} of the drafts "
              f"accepted, {found['equal']} of {len(exchanges)} answers equal")  # fmt: skip
    print(json.dumps({"model": str(args.model), "rows": len(exchanges), "n_seq": args.n_seq, "rounds": rounds}))
    return 0


def measure(plain: Engine, drafting: Engine, exchanges: Sequence[str], *, is_odd: bool) -> dict[str, float]:
    """One round both ways. `drafted` are tokens guessed, of which the share `accepted` was right."""
    habits = drafting.habits
    n_drafted, n_accepted = habits.n_drafted, habits.n_accepted
    seconds: dict[bool, float] = {}
    answers: dict[bool, list[Completion]] = {}
    for has_drafts in (True, False) if is_odd else (False, True):
        start = time.perf_counter()
        answers[has_drafts] = (drafting if has_drafts else plain).extract(exchanges)
        seconds[has_drafts] = time.perf_counter() - start
    n_drafted, n_accepted = habits.n_drafted - n_drafted, habits.n_accepted - n_accepted
    n_written = sum(answer.n_tokens for answer in answers[True])
    return {
        "plain_s": seconds[False],
        "drafting_s": seconds[True],
        "times_as_fast": seconds[False] / seconds[True],
        "written": n_written,
        "drafted": n_drafted,
        "accepted": n_accepted / max(n_drafted, 1),
        "tokens_a_step": n_written / max(n_written - n_accepted, 1),
        "equal": sum(one.tokens == other.tokens for one, other in zip(answers[True], answers[False], strict=True)),
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path, metavar="FILE.gguf")
    add("--split", default="val", help="rows to answer (%(default)s)")
    add("--rows", type=int, default=64, metavar="N", help="extraction rows (%(default)s)")
    add("--n-seq", type=int, default=16, metavar="N", help="rows answered at once (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="(%(default)s)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="(%(default)s)")
    add("--threads", type=int, metavar="N", help="(all cores)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
