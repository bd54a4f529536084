"""`observe_many` beside a loop of `observe`, or beside the engine of an earlier commit, on the same turns.

    python -m eval.benchmarks.observing outputs/nano/gguf/nano-q8_0.gguf --turns 1000
    git worktree add ../earlier COMMIT
    python -m eval.benchmarks.observing FILE.gguf --beside ../earlier --tokens 300 --turns 100 --part 50
    python -m eval.benchmarks.observing --random-shape 0.6b --vocab FOLDER --type f16 --turns 40 --part 20

An earlier engine is asked today's prompts: it grades all turns, then extracts from those worth it. With --random-shape
the weights are random but for a head that recites one valid extraction: the speed of that shape, where no trained
weights can be reached.

Turns are the shipped raw rows of both tasks, evenly spread. They are cut into parts; every part goes through both ways
before the next, since a shared machine changes its pace within minutes; a part of 250 already fills the batches.
Writes docs/benchmarks/observing-NAME.md; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

from eval.answers.origin import facts_of
from eval.benchmarks.harness import Child, parse_benchmark, write_benchmark
from eval.benchmarks.reciting_base import NAME, add_model_options, note_on, reciting_gguf
from eval.reports.tables import table
from observer.backends.opening import best_gguf
from observer.client import Observer
from observer.console.progress import show_progress
from observer.console.run import run_cli
from observer.engine.engine import Engine
from observer.engine.llama_model import usable_cores
from observer.errors import ObserverError
from observer.files import read_jsonl
from observer.observation import Completion, Exchange, Grade, Observation, Turn
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL
from observer.prompts import CUES, SYSTEM_PROMPT
from observer.runs.manifest import git_commit
from observer.schema import Label, parse_row
from observer.turns.after_model import observation
from observer.turns.before_model import prepare

PROMPTS = {"system": SYSTEM_PROMPT, "cues": {str(task): cue for task, cue in CUES.items()}}
Way = Callable[[Sequence[Exchange]], list[Observation]]


@dataclass(frozen=True)
class Part:
    """The same turns both ways: seconds, and how many observations are equal but for probabilities."""

    n_turns: int
    beside_s: float
    many_s: float
    n_equal: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = parse_arguments(arguments)
    turns = choose_turns(args.turns)
    if args.random_shape:
        said = Turn(role="user", content=NAME)
        turns = [turn.model_copy(update={"context": [said, *turn.context]}) for turn in turns]
    model = args.model or str(reciting_gguf(args.random_shape, args.type, vocab=args.vocab))
    with ExitStack() as stack:
        observer = stack.enter_context(Observer(model, n_threads=args.threads))
        if args.tokens:
            with Engine(best_gguf(Path(model))) as engine:
                turns = lengthen(turns, args.tokens, engine)
        beside: Way = lambda part: [observer.observe(turn) for turn in part]  # noqa: E731
        commit = None
        if args.beside:
            earlier = stack.enter_context(EarlierEngine(args.beside, best_gguf(Path(model)), args.threads))
            beside, commit = partial(read_earlier, earlier, observer.name), earlier.commit
        for way in (observer.observe_many, beside):
            way(turns[:2])  # the first answers open contexts and read the weights
        parts = measure(observer.observe_many, beside, turns, args.part)
        name = observer.name
    note = [f"> {note}"] if (note := note_on(name)) else []
    data = f"{len(turns):,} turns of `{GRADING_JSONL}` and `{EXTRACTION_JSONL}`, evenly spread"
    if args.tokens:
        data += f", each with as many of the others before it as {args.tokens:,} tokens have room for"
    facts = facts_of(args.command, n_threads=args.threads) | {"data": data}
    what = f"the engine of commit {commit}" if commit else "a loop of observe"
    stem = f"observing-{name}{f'-{commit}' if commit else ''}{f'-{args.tokens}' if args.tokens else ''}"
    word = "earlier" if commit else "loop"
    write_benchmark(
        args.out / stem, f"observe_many beside {what}, {name}", facts,
        [*note, in_words(parts, word), to_table(parts, word)], {"parts": [asdict(part) for part in parts]},
        {"ratio": ratio(parts)},
    )  # fmt: skip
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


def lengthen(turns: Sequence[Exchange], n_tokens: int, engine: Engine) -> list[Exchange]:
    """Of the turns that have at most `n_tokens` rendered, each with others before it while it has no more."""
    short = [turn for turn in turns if engine.n_tokens(prepare(turn).prompt) <= n_tokens]
    longer = []
    for number, turn in enumerate(short):
        for other in itertools.islice(itertools.cycle(short), number + 1, number + len(short)):
            user = Turn(role="user", content=other.user_message)
            reply = [Turn(role="assistant", content=other.assistant_message)] if other.assistant_message else []
            more = turn.model_copy(update={"context": [user, *reply, *turn.context]})
            if engine.n_tokens(prepare(more).prompt) > n_tokens:
                break
            turn = more
        longer.append(turn)
    return longer


class EarlierEngine:
    """`earlier_engine` in a process of its own. Raises ObserverError when it ends."""

    def __init__(self, checkout: Path, model: Path, n_threads: int | None) -> None:
        if (commit := git_commit(checkout)) is None:
            raise ObserverError(f"--beside {checkout}: no checkout; `git worktree add {checkout} COMMIT` makes one")
        self.commit = commit
        script = Path(__file__).resolve().with_name("earlier_engine.py")
        asked = {"model": str(model.resolve()), "n_threads": n_threads or usable_cores()} | PROMPTS
        self._child = Child([str(script), json.dumps(asked)], folder=checkout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def ask(self, exchanges: Sequence[str]) -> list[tuple[Label, str | None, bool]]:
        """Of each its label, and the answer of the extraction with whether it was cut."""
        try:
            answers = self._child.ask(json.dumps(exchanges))
        except ObserverError as error:
            raise ObserverError("--beside: the engine of that checkout ended; its message stands above") from error
        return [(Label(label), text, truncated) for label, text, truncated in answers]


def read_earlier(engine: EarlierEngine, name: str, turns: Sequence[Exchange]) -> list[Observation]:
    """What `observe_many` would say with an earlier engine."""
    prepared = [prepare(turn) for turn in turns]
    return [
        observation(
            one,
            name,
            grade=Grade(label, dict.fromkeys(Label, 1 / len(Label))),
            completion=None if text is None else Completion(text, (), truncated),
        )
        for one, (label, text, truncated) in zip(prepared, engine.ask([one.prompt for one in prepared]), strict=True)
    ]


def measure(many: Way, beside: Way, turns: Sequence[Exchange], part_size: int) -> list[Part]:
    """Every part both ways, `many` first in every other one."""
    parts: list[Part] = []
    ways = {"many": many, "beside": beside}
    with show_progress("observing, turns", len(turns)) as progress:
        for start in range(0, len(turns), part_size):
            chosen = turns[start : start + part_size]
            seconds: dict[str, float] = {}
            found: dict[str, list[Observation]] = {}
            for name in reversed(ways) if len(parts) % 2 else ways:
                began = time.perf_counter()
                found[name] = ways[name](chosen)
                seconds[name] = time.perf_counter() - began
            n_equal = sum(is_same(a, b) for a, b in zip(found["beside"], found["many"], strict=True))
            parts.append(Part(len(chosen), seconds["beside"], seconds["many"], n_equal))
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


def to_table(parts: Sequence[Part], beside: str) -> str:
    header = ["part", "turns", f"{beside} s", "many s", "ratio", f"{beside} turns/s", "many turns/s", "equal"]
    rows = []
    for number, p in enumerate(parts, 1):
        speeds = [f"{p.beside_s / p.many_s:.2f}", f"{p.n_turns / p.beside_s:.1f}", f"{p.n_turns / p.many_s:.1f}"]
        rows.append([str(number), str(p.n_turns), f"{p.beside_s:.1f}", f"{p.many_s:.1f}", *speeds, str(p.n_equal)])
    return table(header, rows)


def in_words(parts: Sequence[Part], beside: str) -> str:
    ratios = [part.beside_s / part.many_s for part in parts]
    n_turns, n_equal = sum(part.n_turns for part in parts), sum(part.n_equal for part in parts)
    slow, many = n_turns / sum(part.beside_s for part in parts), n_turns / sum(part.many_s for part in parts)
    return (
        f"`observe_many`: **{ratio(parts):.2f} times** as fast ({min(ratios):.2f} to {max(ratios):.2f} in the parts): "
        f"{many:.1f} turns/s where `{beside}` does {slow:.1f}. {n_equal:,} of {n_turns:,} observations are equal but "
        "for probabilities."
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    models = "FILE.gguf, a run's folder, hf:FOLDER or ollama:NAME"
    add_model_options(parser, "q8_0").add_argument("model", nargs="?", metavar="MODEL", help=models)
    add("--beside", type=Path, metavar="CHECKOUT", help="of an earlier commit, as `git worktree` makes; else a loop")
    add("--tokens", type=int, metavar="N", help="turns of nearly N tokens: others of them go before each")
    add("--turns", type=int, default=1000, metavar="N", help="default: %(default)s")
    add("--part", type=int, default=250, metavar="N", help="turns a part (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="default: all cores")
    return parse_benchmark(parser, "eval.benchmarks.observing", arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
