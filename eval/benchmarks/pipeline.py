"""Time the whole pipeline from rows to evaluated GGUF files, stage by stage, and write it down.

    python -m eval.benchmarks.pipeline --config configs/nano.yaml

Runs `train_sft.py` twice in a folder of its own: once from nothing, once more to show that nothing is done
twice. Writes docs/benchmarks/pipeline-<run>.md with the machine, the date and the command.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from eval.answers.origin import this_machine
from observer.config import Config, load_config
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import write_text
from observer.runs.manifest import environment

RECIPE = Path("train_sft.py")
_STAGE = re.compile(r"^(?P<name>[\w ]+): (?:done in (?P<seconds>[\d.]+) s|(?P<skipped>done before))", re.MULTILINE)


@dataclass(frozen=True)
class Timing:
    """One run of the recipe: wall seconds in all and of each stage; a skipped stage has None."""

    seconds: float
    stages: dict[str, float | None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/nano.yaml"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="default: %(default)s")
    args = parser.parse_args()
    config = load_config(args.config)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(RECIPE), "--config", str(args.config), "--set", f"run.output_dir={folder}"]
        first, again = run_recipe(command), run_recipe(command)
        summary = Path(folder, config.run.name, "reports", "summary.md").read_text(encoding="utf-8")
    report = args.out / f"pipeline-{config.run.name}.md"
    write_text(report, render(config, args.config, first, again, summary))
    print(f"wrote {report}")
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


def render(config: Config, config_path: Path, first: Timing, again: Timing, summary: str) -> str:
    """The report as Markdown."""
    machine, versions = this_machine(0), environment()
    packages = ", ".join(f"{name} {version}" for name, version in versions["packages"].items() if version)
    rows = [
        f"| {name} | {seconds or 0:.1f} | {'skipped' if again.stages.get(name) is None else 'done again'} |"
        for name, seconds in first.stages.items()
    ]
    return "\n".join(
        [
            f"# Pipeline, {config.run.name}: from rows to evaluated GGUF files",
            "",
            f"- machine: {machine.cpu}, {machine.n_cores} cores, no GPU used"
            if config.run.device != "cuda"
            else f"- machine: {machine.cpu}, {machine.n_cores} cores, one CUDA GPU",
            f"- date: {date.today().isoformat()}, commit {versions['git_commit']}",
            f"- versions: Python {versions['python']}, {packages}",
            f"- command: `python -m eval.benchmarks.pipeline --config {config_path}`",
            f"- data: {config.data.train} and {config.data.val}; quality is measured on {config.data.val}",
            "",
            "| stage | wall s | second run |",
            "|---|---|---|",
            *rows,
            f"| **all, with start-up** | **{first.seconds:.1f}** | **{again.seconds:.1f} s** |",
            "",
            summary.strip(),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
