"""`observe_many` beside a loop of `observe`, on the same turns, with the same Observer.

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
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from eval.answers.origin import command_line, this_machine
from eval.benchmarks.reciting_base import note_on
from observer.client import Observer
from observer.console.progress import show_progress
from observer.console.run import run_cli
from observer.engine.llama_model import usable_cores
from observer.errors import ObserverError
from observer.files import read_jsonl, write_text
from observer.observation import Exchange, Observation
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL
from observer.runs.manifest import environment
from observer.schema import parse_row


@dataclass(frozen=True)
class Part:
    """The same turns both ways: seconds, how many observations are equal but for probabilities, and how many in all."""

    n_turns: int
    loop_s: float
    many_s: float
    n_equal: int
    n_identical: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = parse_arguments(arguments)
    turns = choose_turns(args.turns)
    with Observer(args.model or str(_reciting(args)), n_threads=args.threads) as observer:
        observer.observe_many(turns[:2])  # the first answers open contexts and read the weights
        parts = measure(observer, turns, args.part)
        name = observer.name
    command = command_line("-m eval.benchmarks.observing", arguments)
    report = args.out / f"observing-{name}.md"
    write_text(report, render(name, parts, args.threads or usable_cores(), command))
    print(f"wrote {report}")
    print(json.dumps({"ratio": ratio(parts), "parts": [asdict(part) for part in parts]}))
    return 0


def choose_turns(n_turns: int) -> list[Exchange]:
    """As many raw rows, evenly spread over both files."""
    rows = [parse_row(value)[0] for path in (GRADING_JSONL, EXTRACTION_JSONL) for _, value in read_jsonl(path)]
    if n_turns > len(rows):
        raise ObserverError(f"--turns {n_turns:,}: the shipped files have {len(rows):,} rows; ask for fewer")
    chosen = [rows[number * len(rows) // n_turns] for number in range(n_turns)]
    return [
        Exchange(user_message=row.user_message, assistant_message=row.assistant_message, context=row.context)
        for row in chosen
        if row is not None
    ]


def measure(observer: Observer, turns: Sequence[Exchange], part_size: int) -> list[Part]:
    """Every part both ways, the loop first in every other one."""
    parts: list[Part] = []
    with show_progress("observing, turns", len(turns)) as progress:
        for start in range(0, len(turns), part_size):
            chosen = turns[start : start + part_size]
            seconds: dict[str, float] = {}
            found: dict[str, list[Observation]] = {}
            for way in ("loop", "many") if len(parts) % 2 else ("many", "loop"):
                began = time.perf_counter()
                found[way] = observer.observe_many(chosen) if way == "many" else [observer.observe(t) for t in chosen]
                seconds[way] = time.perf_counter() - began
            n_equal = sum(is_same(a, b) for a, b in zip(found["loop"], found["many"], strict=True))
            n_identical = sum(a == b for a, b in zip(found["loop"], found["many"], strict=True))
            parts.append(Part(len(chosen), seconds["loop"], seconds["many"], n_equal, n_identical))
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
    return sum(part.loop_s for part in parts) / sum(part.many_s for part in parts)


def render(name: str, parts: Sequence[Part], n_threads: int, command: str) -> str:
    machine, versions = this_machine(n_threads), environment()
    n_turns = sum(part.n_turns for part in parts)
    lines = [
        f"# observe_many beside a loop of observe, {name}",
        "",
        *([f"> {note}", ""] if (note := note_on(name)) else []),
        f"- machine: {machine.cpu}, {usable_of_all()}, {n_threads} threads, shared: trust the ratios",
        f"- date: {date.today().isoformat()}, commit {versions['git_commit']}",
        f"- data: {n_turns:,} turns of `{GRADING_JSONL}` and `{EXTRACTION_JSONL}`, evenly spread",
        f"- command: `{command}`",
        "",
        f"{speed_in_words(parts)} {agreement_in_words(parts)}",
        "",
        "| part | turns | loop s | many s | ratio | loop turns/s | many turns/s | equal | with probabilities |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, p in enumerate(parts, 1):
        speeds = f"{p.loop_s / p.many_s:.2f} | {p.n_turns / p.loop_s:.1f} | {p.n_turns / p.many_s:.1f}"
        equal = f"{p.n_equal} | {p.n_identical}"
        lines.append(f"| {number} | {p.n_turns} | {p.loop_s:.1f} | {p.many_s:.1f} | {speeds} | {equal} |")
    return "\n".join(lines) + "\n"


def usable_of_all() -> str:
    """The cores that this process may run on, of those there are."""
    if not hasattr(os, "sched_getaffinity"):
        return f"{usable_cores()} cores"
    numbers = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
    return f"{usable_cores()} of its {os.cpu_count()} cores ({numbers})"


def speed_in_words(parts: Sequence[Part]) -> str:
    ratios = [part.loop_s / part.many_s for part in parts]
    n_turns = sum(part.n_turns for part in parts)
    loop, many = (n_turns / sum(seconds) for seconds in ([p.loop_s for p in parts], [p.many_s for p in parts]))
    return (
        f"`observe_many`: **{ratio(parts):.2f} times** as fast ({min(ratios):.2f} to {max(ratios):.2f} in the parts): "
        f"{many:.1f} turns/s where the loop does {loop:.1f}."
    )


def agreement_in_words(parts: Sequence[Part]) -> str:
    n_turns, n_equal = sum(part.n_turns for part in parts), sum(part.n_equal for part in parts)
    n_identical = sum(part.n_identical for part in parts)
    if n_identical == n_turns:
        return f"All {n_turns:,} observations are equal to the last digit of their probabilities."
    of_all = f"All {n_turns:,}" if n_equal == n_turns else f"{n_equal:,} of {n_turns:,}"
    return f"{of_all} observations are equal but for probabilities, {n_identical:,} with them."


def _reciting(args: argparse.Namespace) -> Path:
    from eval.benchmarks.reciting_base import reciting_gguf

    return reciting_gguf(args.random_shape, args.type, vocab=args.vocab)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("model", nargs="?", metavar="MODEL", help="FILE.gguf, a run's folder, hf:FOLDER or ollama:NAME")
    source.add_argument("--random-shape", metavar="SHAPE", help="a reciting model instead: 0.6b, 0.6b:block_count=4, …")
    add("--vocab", type=Path, metavar="PATH", help="with --random-shape: a GGUF's tokenizer")
    add("--type", default="q8_0", help="with --random-shape; default: %(default)s")
    add("--turns", type=int, default=1000, metavar="N", help="default: %(default)s")
    add("--part", type=int, default=250, metavar="N", help="turns a part (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="default: all cores")
    add("--out", type=Path, default=Path("docs/benchmarks"), metavar="DIR", help="default: %(default)s")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
