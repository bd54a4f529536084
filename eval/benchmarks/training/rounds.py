"""A warm child process for each contestant, one at work at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks.harness import Record, Records, last_words, say, stop, take_turns
from eval.benchmarks.training.trainers import Entrant, entry_config
from observer.config import Config
from observer.errors import ObserverError
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


class Child:
    """A running contestant; `ask` waits for its answer. Raises ObserverError with its last words when it dies."""

    def __init__(self, bench: Bench, entrant: Entrant) -> None:
        config = bench.folder / f"{entrant.label}.yaml"
        write_text(config, entry_config(bench.config, entrant, bench.folder).to_yaml())
        self.log = bench.folder / f"{entrant.label}.log"
        command = [sys.executable, "-m", "eval.benchmarks.training.child"]
        command += [str(config), entrant.kind, str(bench.warm_up_steps)]
        environment = os.environ | {"PYTHONPATH": python_path()}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
            )

    def ask(self, command: str) -> Record:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ObserverError(last_words(self.log, f"ended with exit code {self.process.wait()}"))
        return json.loads(answer)

    def close(self) -> None:
        """End its input, at which it leaves; kill it where it does not."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        stop(self.process)
        self.process.stdout.close()


def run_rounds(bench: Bench) -> list[Record]:
    """Take turns until every contestant has its rounds, and return all records; what is on record is not done again."""
    records = Records(bench.folder / "records.jsonl")
    entrants = {entrant.label: entrant for entrant in bench.entrants}
    children: dict[str, Child] = {}
    with ExitStack() as stack:

        def take(label: str, number: int) -> Record:
            if label not in children:
                say(f"{label}: starting")
                children[label] = stack.enter_context(closing(Child(bench, entrants[label])))
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
