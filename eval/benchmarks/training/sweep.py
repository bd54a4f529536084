"""Train every point of a grid, and sort the points by the time they took to reach one validation loss.

    python -m eval.benchmarks.training.sweep --config configs/nano.yaml \\
        --grid training.learning_rate=3e-4,6e-4,1.2e-3 training.per_device_train_batch_size=8,16
    python -m eval.benchmarks.training.sweep --config configs/qwen3-0.6b.yaml \\
        --grid 'lora.target_modules=[q_proj,v_proj],[down_proj]' --target-nll 0.12 --evaluate
    python -m eval.benchmarks.training.sweep --config configs/nano.yaml --rows 880 --val-rows 160 \\
        --set training.num_train_epochs=1 --grid training.learning_rate=6e-4,1.2e-3 \\
        lora.r:lora.lora_alpha=16:32,32:64 training.per_device_train_batch_size:training.eval_steps=8:28,16:14

Each point is a run of `train_sft.py` up to the adapter, in outputs/sweep-<run name>/<point>/; --evaluate goes on to
the GGUF files and their scores. Keys joined by colons change together: alpha with r, or the scale alpha / r changes
too; eval_steps with the batch, or small batches are evaluated more often, which counts in their time. --rows takes
fewer train rows for a first look; the best rate for all may be another. A point that fails is a line of the table.
Cut, it goes on with the same command, and a larger grid takes what is done. Validation loss is measured every
training.eval_steps steps, and the time to a target lies between two of them on a straight line: choose eval_steps
small enough. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.answers.origin import facts_of
from eval.benchmarks.harness import last_words, parse_benchmark, say, write_benchmark
from eval.benchmarks.training.benchmark import choose_rows
from eval.benchmarks.training.grid import Point, by_time_to, default_target, parse_grid, read_outcome, to_table
from observer.config import Config, load_config
from observer.console.run import run_cli
from observer.errors import ObserverError, raise_all
from observer.files import write_jsonl
from observer.paths import PROJECT_ROOT

RECIPE = PROJECT_ROOT / "train_sft.py"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    base = load_config(args.config, args.overrides)
    root = base.run.output_dir / f"sweep-{base.run.name}"
    args.overrides += draw_rows(args, base, root)
    points = parse_grid(args.grid)
    configs = check_points(args, points, root)
    errors = {}
    for number, (point, config) in enumerate(zip(points, configs, strict=True), 1):
        say(f"{number}/{len(points)}  {point.name}")
        errors[point.name] = run_point(args, point, config, root)
    outcomes = [read_outcome(point, config.paths, errors[point.name])
                for point, config in zip(points, configs, strict=True)]  # fmt: skip
    target = args.target_nll if args.target_nll is not None else default_target(outcomes)
    ordered = by_time_to(outcomes, target)
    found = to_table(ordered, target)
    print(found)
    failed = {outcome.point.name: outcome.error for outcome in outcomes if outcome.error}
    line = {"target_nll": target, "best": ordered[0].point.name, "failed": failed}
    write_benchmark(
        args.out / f"sweep-{base.run.name}", f"Sweep, {base.run.name}", sweep_facts(args, target), [found],
        {"points": [o.as_json(target) for o in ordered]}, line | {"time_to_target_s": ordered[0].time_to(target)},
    )  # fmt: skip
    return 0 if any(not outcome.error for outcome in outcomes) else 1


def draw_rows(args: argparse.Namespace, base: Config, root: Path) -> list[str]:
    """Write the rows that all points share, where fewer were asked for; return the settings that name them."""
    settings = []
    for key, n_rows in (("train", args.rows), ("val", args.val_rows)):
        if n_rows is None:
            continue
        if base.data.utility or base.data.extraction:
            raise ObserverError(
                f"--rows, --val-rows: {args.config} splits rows of your own in every run; split them once with "
                "`observer data split`, and name what it writes as data.train and data.val"
            )
        drawn = root / f"{key}-{n_rows}.jsonl"
        write_jsonl(drawn, choose_rows(getattr(base.data, key), n_rows, base.run.seed))
        settings.append(f"data.{key}={drawn}")
        settings += ["data.more=[]"] if key == "train" else []
    return settings


def check_points(args: argparse.Namespace, points: Sequence[Point], root: Path) -> list[Config]:
    """Every point's config. Raises ObserverError naming all points that the config refuses."""
    configs, faults = [], []
    for point in points:
        try:
            configs.append(load_config(args.config, [*args.overrides, *point.overrides, *_place(point, root)]))
        except ObserverError as error:
            faults += str(error).splitlines()
    raise_all(list(dict.fromkeys(faults)))
    return configs


def run_point(args: argparse.Namespace, point: Point, config: Config, root: Path) -> str | None:
    """Run the recipe for one point, or skip what it did before; return its last words if it failed."""
    overrides = [*args.overrides, *point.overrides, *_place(point, root)]
    command = [sys.executable, str(RECIPE), "--config", str(args.config)]
    command += [word for override in overrides for word in ("--set", override)]
    command += [] if args.evaluate else ["--until", "train"]
    log = root / f"{point.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == 0:
        return None
    words = last_words(log, f"exit code {code}")
    say(f"  failed: {words}")
    return words


def sweep_facts(args: argparse.Namespace, target: float | None) -> dict[str, str]:
    return facts_of(args.command) | {
        "target": "no point was evaluated twice" if target is None else f"validation NLL {target:.4f}, "
        + ("as asked" if args.target_nll is not None else "the median of the points' lowest"),
        "seconds": "wall time of the training with its evaluations, start-up left out",
    }  # fmt: skip


def _place(point: Point, root: Path) -> list[str]:
    return [f"run.output_dir={root}", f"run.name={point.name}"]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="what all points share")
    parser.add_argument("--grid", nargs="+", required=True, metavar="SECTION.KEY=A,B,…", help="the values to cross")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--rows", type=int, help="train rows, drawn at random, the same for all points; default: all")
    parser.add_argument("--val-rows", type=int, help="rows of the validation loss, drawn likewise; default: all")
    parser.add_argument("--target-nll", type=float, help="nats a token; default: the median of the points' lowest")
    parser.add_argument("--evaluate", action="store_true", help="go on to GGUF files and task metrics")
    return parse_benchmark(parser, "eval.benchmarks.training.sweep", arguments, out="outputs")


if __name__ == "__main__":
    sys.exit(run_cli(main))
