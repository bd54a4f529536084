"""A warm child process for each contestant, one at work at a time."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks.harness import Child, Record, Records, say, take_turns
from eval.benchmarks.training.trainers import Entrant, entry_config
from observer.config import Config
from observer.files import write_text
from observer.paths import python_path


@dataclass(frozen=True)
class Bench:
    """What is compared, on what; `folder` keeps the rows, logs and records of this very comparison.

    `n_rows` and `n_tokens` are those of a round: the train rows times the epochs.
    """

    config: Config
    entrants: list[Entrant]
    folder: Path
    n_rounds: int
    warm_up_steps: int
    n_rows: int
    n_tokens: int
    n_val_rows: int
    device: str


def start_child(bench: Bench, entrant: Entrant) -> Child:
    """A running contestant."""
    config = bench.folder / f"{entrant.label}.yaml"
    write_text(config, entry_config(bench.config, entrant, bench.folder).to_yaml())
    command = ["-m", "eval.benchmarks.training.child", str(config), entrant.kind, str(bench.warm_up_steps)]
    environment = os.environ | {"PYTHONPATH": python_path()}
    return Child(command, log=bench.folder / f"{entrant.label}.log", environment=environment)


def run_rounds(bench: Bench) -> list[Record]:
    """Take turns until every contestant has its rounds, and return all records; what is on record is not done again."""
    records = Records(bench.folder / "records.jsonl")
    entrants = {entrant.label: entrant for entrant in bench.entrants}
    children: dict[str, Child] = {}
    with ExitStack() as stack:

        def take(label: str, number: int) -> Record:
            if label not in children:
                say(f"{label}: starting")
                children[label] = stack.enter_context(closing(start_child(bench, entrants[label])))
                start = children[label].ask("start")
                if not records.has("start", label):
                    records.keep("start", label, **start)
            taken = children[label].ask("round")
            speed = bench.n_tokens / taken["seconds"]
            say(f"round {number}/{bench.n_rounds}  {label:<18} {taken['seconds']:8.2f} s  {speed:10,.0f} real tokens/s")
            if not records.has("nll", label):
                records.keep("nll", label, **children[label].ask("nll"))
            return taken

        return take_turns(list(entrants), bench.n_rounds, records, take)
