"""`observe_many` beside a loop of `observe` on the same turns.

    python -m eval.benchmarks.observing outputs/nano/gguf/nano-q8_0.gguf --turns 1000
    python -m eval.benchmarks.observing --random-shape 0.6b --vocab FOLDER --type f16 --turns 40 --part 20

With --random-shape the weights are random but for a head that recites one valid extraction: the speed of that shape,
where no trained weights can be reached.

Turns are the shipped raw rows of both tasks, evenly spread. They are cut into parts; every part goes through both ways
before the next, since a shared machine changes its pace within minutes; a part of 250 already fills the batches.
Writes docs/benchmarks/observing-NAME.md; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from eval.answers.origin import facts_of
from eval.answers.rows import spread
from eval.benchmarks.harness import parse_benchmark, write_benchmark
from eval.benchmarks.reciting_base import add_model_options, note_on, reciting_gguf
from eval.reports.tables import table
from observer.client import Observer
from observer.console.progress import show_progress
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import read_jsonl
from observer.observation import Exchange, Observation
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL
from observer.schema import parse_row


@dataclass(frozen=True)
class Part:
    """The same turns both ways: seconds of a loop and of `observe_many`, and how many observations are equal but for
    probabilities.
    """

    n_turns: int
    beside_s: float
    many_s: float
    n_equal: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = parse_arguments(arguments)
    turns = choose_turns(args.turns)
    model = args.model or str(reciting_gguf(args.random_shape, args.type, vocab=args.vocab))
    with Observer(model, n_threads=args.threads) as observer:
        observer.observe_many(turns[:2])  # the first answers open contexts and read the weights
        parts = measure(observer, turns, args.part)
        name = observer.name
    note = [f"> {note}"] if (note := note_on(name)) else []
    data = f"{len(turns):,} turns of `{GRADING_JSONL}` and `{EXTRACTION_JSONL}`, evenly spread"
    write_benchmark(
        args.out / f"observing-{name}", f"observe_many beside a loop of observe, {name}",
        facts_of(args.command, n_threads=args.threads) | {"data": data}, [*note, in_words(parts), to_table(parts)],
        {"parts": [asdict(part) for part in parts]}, {"ratio": ratio(parts)},
    )  # fmt: skip
    return 0


def choose_turns(n_turns: int) -> list[Exchange]:
    """As many raw rows, evenly spread over both files."""
    rows = [parse_row(value)[0] for path in (GRADING_JSONL, EXTRACTION_JSONL) for _, value in read_jsonl(path)]
    if n_turns > len(rows):
        raise ObserverError(f"--turns {n_turns:,}: the shipped files have {len(rows):,} rows; ask for fewer")
    return [
        Exchange(user_message=row.user_message, assistant_message=row.assistant_message, context=row.context)
        for row in (rows[number] for number in spread(len(rows), n_turns))
        if row is not None
    ]


def measure(observer: Observer, turns: Sequence[Exchange], part_size: int) -> list[Part]:
    """Every part both ways, the loop first in every other one."""
    parts: list[Part] = []
    ways = {"many": observer.observe_many, "loop": lambda chosen: [observer.observe(turn) for turn in chosen]}
    with show_progress("observing, turns", len(turns)) as progress:
        for start in range(0, len(turns), part_size):
            chosen = turns[start : start + part_size]
            seconds: dict[str, float] = {}
            found: dict[str, list[Observation]] = {}
            for name in reversed(ways) if len(parts) % 2 else ways:
                began = time.perf_counter()
                found[name] = ways[name](chosen)
                seconds[name] = time.perf_counter() - began
            n_equal = sum(map(is_same, found["loop"], found["many"]))
            parts.append(Part(len(chosen), seconds["loop"], seconds["many"], n_equal))
            progress(start + len(chosen), len(turns))
    return parts


def is_same(one: Observation, other: Observation) -> bool:
    """Equal but for probabilities, which may move with the rounding of a batch."""
    return without_numbers(one) == without_numbers(other)


def without_numbers(observation: Observation) -> Observation:
    relationships = [r.model_copy(update={"confidence": None}) for r in observation.relationships]
    grade = observation.grade and observation.grade.model_copy(update={"probabilities": None, "confidence": None})
    return observation.model_copy(update={"relationships": relationships, "grade": grade})


def ratio(parts: Sequence[Part]) -> float:
    """How many times as fast many are."""
    return sum(part.beside_s for part in parts) / sum(part.many_s for part in parts)


def to_table(parts: Sequence[Part]) -> str:
    header = ["part", "turns", "loop s", "many s", "ratio", "loop turns/s", "many turns/s", "equal"]
    rows = []
    for number, p in enumerate(parts, 1):
        speeds = [f"{p.beside_s / p.many_s:.2f}", f"{p.n_turns / p.beside_s:.1f}", f"{p.n_turns / p.many_s:.1f}"]
        rows.append([str(number), str(p.n_turns), f"{p.beside_s:.1f}", f"{p.many_s:.1f}", *speeds, str(p.n_equal)])
    return table(header, rows)


def in_words(parts: Sequence[Part]) -> str:
    ratios = [part.beside_s / part.many_s for part in parts]
    n_turns, n_equal = sum(part.n_turns for part in parts), sum(part.n_equal for part in parts)
    loop, many = n_turns / sum(part.beside_s for part in parts), n_turns / sum(part.many_s for part in parts)
    return (
        f"`observe_many`: **{ratio(parts):.2f} times** as fast ({min(ratios):.2f} to {max(ratios):.2f} in the parts): "
        f"{many:.1f} turns/s where `loop` does {loop:.1f}. {n_equal:,} of {n_turns:,} observations are equal but "
        "for probabilities."
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    models = "FILE.gguf, a run's folder, hf:FOLDER or ollama:NAME"
    add_model_options(parser, "q8_0").add_argument("model", nargs="?", metavar="MODEL", help=models)
    add("--turns", type=int, default=1000, metavar="N", help="default: %(default)s")
    add("--part", type=int, default=250, metavar="N", help="turns a part (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="default: all cores")
    return parse_benchmark(parser, "eval.benchmarks.observing", arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
