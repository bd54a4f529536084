"""Time the whole pipeline from rows to evaluated GGUF files, stage by stage, and write it down.

    python -m eval.benchmarks.pipeline --config configs/nano.yaml

Runs `train_sft.py` twice in a folder of its own: once from nothing, once more to show that nothing is done
twice. Writes docs/benchmarks/pipeline-<run>.md; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.answers.origin import facts_of
from eval.benchmarks.harness import parse_benchmark, write_benchmark
from eval.reports.tables import table
from observer.config import load_config
from observer.console.run import run_cli
from observer.errors import ObserverError

RECIPE = Path("train_sft.py")
_STAGE = re.compile(r"^(?P<name>[\w ]+): (?:done in (?P<seconds>[\d.]+) s|(?P<skipped>done before))", re.MULTILINE)


@dataclass(frozen=True)
class Timing:
    """One run of the recipe: wall seconds in all and of each stage; a skipped stage has None."""

    seconds: float
    stages: dict[str, float | None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/nano.yaml"), help="default: %(default)s")
    args = parse_benchmark(parser, "eval.benchmarks.pipeline", arguments)
    config = load_config(args.config)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(RECIPE), "--config", str(args.config), "--set", f"run.output_dir={folder}"]
        first, again = run_recipe(command), run_recipe(command)
        summary = Path(folder, config.run.name, "reports", "summary.md").read_text(encoding="utf-8")
    facts = facts_of(args.command, gpu="one CUDA GPU" if config.run.device == "cuda" else None) | {
        "data": f"{config.data.train} and {config.data.val}; quality is measured on {config.data.val}"
    }
    title = f"Pipeline, {config.run.name}: from rows to evaluated GGUF files"
    seconds = {"seconds": first.seconds, "seconds_again": again.seconds}
    figures = {"first": asdict(first), "again": asdict(again)}
    parts = [stage_table(first, again), summary.strip()]
    write_benchmark(args.out / f"pipeline-{config.run.name}", title, facts, parts, figures, seconds)
    return 0


def run_recipe(command: list[str]) -> Timing:
    """Run the recipe with its output shown. Raises ObserverError when it fails."""
    started = time.monotonic()
    output = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            output += line
    if process.returncode != 0:
        raise ObserverError(f"{RECIPE} failed with exit code {process.returncode}; its message is above")
    return Timing(time.monotonic() - started, stage_seconds(output))


def stage_seconds(output: str) -> dict[str, float | None]:
    """The stages of the recipe's output, in order."""
    return {match["name"]: None if match["skipped"] else float(match["seconds"]) for match in _STAGE.finditer(output)}


def stage_table(first: Timing, again: Timing) -> str:
    rows = [
        [name, f"{seconds or 0:.1f}", "skipped" if again.stages.get(name) is None else "done again"]
        for name, seconds in first.stages.items()
    ]
    rows.append(["**all, with start-up**", f"**{first.seconds:.1f}**", f"**{again.seconds:.1f} s**"])
    return table(["stage", "wall s", "second run"], rows)


if __name__ == "__main__":
    sys.exit(run_cli(main))
