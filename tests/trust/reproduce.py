"""Two runs of one config on this machine, into two folders: are they the same, step by step and byte by byte?

    python -m tests.trust.reproduce --config configs/nano.yaml            both runs in full
    python -m tests.trust.reproduce --config configs/nano.yaml --quick    few steps and rows: minutes less

Compared are the resolved configs, the losses of every step, adapter, merged model, GGUF files and Modelfiles byte by
byte, and every score and answer of the evaluation. Left out is what tells of the run and not of its result: times,
dates, paths, logs. Writes outputs/trust/reproduce.json; exit 1 when anything differs.

The runs are on the CPU unless the config says otherwise. On a GPU they are not expected to be the same:
docs/trust.md tells why.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from eval.answers.origin import command_line
from observer.config import load_config
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import sha256_file
from observer.paths import PROJECT_ROOT
from tests.trust.compare_runs import Comparison, compare_runs
from tests.trust.result import TRUST_FOLDER, save_result

QUICK = ("training.max_steps=12", "training.eval_steps=6", "evaluation.limit=8")
"""Few steps, few rows evaluated; every stage runs all the same."""
RUNS = ("one", "two")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = parse_arguments(arguments)
    overrides = [*(QUICK if args.quick else ()), *args.overrides]
    config = load_config(args.config, overrides)
    began = time.monotonic()
    folder = args.work or Path(tempfile.mkdtemp(prefix="reproduce-"))
    try:
        for name in RUNS:
            run_recipe(args.config, overrides, folder / name)
        one, two = (folder / name / config.run.name for name in RUNS)
        compared = compare_runs(one, two)
        gguf = {path.name: sha256_file(path) for path in sorted((one / "gguf").glob("*.gguf"))}
    finally:
        if not args.work:
            shutil.rmtree(folder, ignore_errors=True)
    command = command_line("-m tests.trust.reproduce", arguments)
    details = {
        "config": str(args.config),
        "overrides": overrides,
        "device": config.run.device,
        "compared": compared.counts,
        "differences": compared.differences,
        "gguf_sha256": gguf,
    }
    summary, passed = summarize(compared, args.config, args.quick), not compared.differences
    path = save_result(
        "reproduce",
        command=command,
        seconds=time.monotonic() - began,
        passed=passed,
        summary=summary,
        details=details,
        folder=args.out,
    )
    print("\n".join([*compared.differences, f"wrote {path}", summary]))
    return int(not passed)


def run_recipe(config: Path, overrides: Sequence[str], output_dir: Path) -> None:
    """One run in a process of its own, its output on stderr. Raises ObserverError when it fails."""
    values = [*overrides, f"run.output_dir={output_dir}"]
    settings = [part for value in values for part in ("--set", value)]
    command = [sys.executable, str(PROJECT_ROOT / "train_sft.py"), "--config", str(config), *settings]
    print(f"run {output_dir.name}: {shlex.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=sys.stderr, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    if done.returncode:
        raise ObserverError(f"run {output_dir.name} failed with exit code {done.returncode}; its message is above")


def summarize(compared: Comparison, config: Path, is_quick: bool) -> str:
    """One sentence with the numbers."""
    counts = compared.counts
    what = (
        f"two {'short ' if is_quick else ''}runs of {config}: losses of {counts['steps']:,} steps, "
        f"{counts['GGUF files']} GGUF files, {counts['Modelfiles']} Modelfiles, {counts['other files']} other files "
        f"and {counts['scores']:,} scores"
    )
    if not compared.differences:
        return f"{what} are the same."
    return f"{what}; {len(compared.differences)} differ, first: {compared.differences[0]}."


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/nano.yaml"), metavar="FILE.yaml", help="default: %(default)s")
    add("--quick", action="store_true", help=f"with {' and '.join(QUICK)}")
    add("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="may be repeated")
    add("--work", type=Path, metavar="DIR", help="keep the two runs here (default: a temporary folder)")
    add("--out", type=Path, default=TRUST_FOLDER, metavar="DIR", help="default: %(default)s")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
