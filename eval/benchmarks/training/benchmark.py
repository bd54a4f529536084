"""Train the same rows in several ways, and compare real tokens a second, memory, gradients and loss.

    python -m eval.benchmarks.training.benchmark --base data/nano-base --dtype float32 --rows 256
    python -m eval.benchmarks.training.benchmark --random-shape 0.6b --vocab FOLDER --rows 32 --rounds 3
    python -m eval.benchmarks.training.benchmark --base FOLDER --batch-size 4 --epochs 3 --contestants trl,ours,ours@32

Each contestant has a process of its own (unsloth patches what it imports), loads once and stays warm; rounds take
turns, A B C D E A B C D E, since a shared machine changes its pace within minutes. A round trains all rows from the
same adapter on. Real tokens are the rows' own, prompt and completion, once a row and epoch: padding does not count,
and an instruction counts in every row however often it is computed. Cut, it goes on with the same command. The last
line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.answers.origin import STAND_IN_NOTE, code_hash, facts_of
from eval.benchmarks.harness import parse_benchmark, write_benchmark
from eval.benchmarks.random_base import random_base
from eval.benchmarks.training.report import sections, standings, summary
from eval.benchmarks.training.rounds import Bench, run_rounds
from eval.benchmarks.training.trainers import CONTESTANTS, DEFAULT_CONTESTANTS, parse_entrants
from observer.config import Config, load_config
from observer.console.run import run_cli
from observer.data.dataset import read_split
from observer.errors import ObserverError
from observer.files import write_jsonl
from observer.paths import NANO_BASE, TRAIN_JSONL, VAL_JSONL
from observer.runs.manifest import environment, fingerprint

WORK = Path("outputs/benchmark-training")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    bench = prepare_bench(args)
    print(f"{bench.n_rows:,} rows, {bench.n_tokens:,} tokens a round; logs in {bench.folder}", file=sys.stderr)
    found = standings(bench.entrants, run_rounds(bench), bench.n_tokens)
    base = f"random weights of shape {args.random_shape}" if args.random_shape else str(args.base)
    title = f"Training, {base}, {args.dtype}{', base in NF4' if args.load_in_4bit else ''}"
    stem = args.out / report_stem(args, bench.device)
    parts, figures = sections(found, bench.n_rows), {"contestants": [asdict(one) for one in found]}
    write_benchmark(stem, title, bench_facts(args, bench), parts, figures, summary(found))
    return 0 if any(standing.tokens_per_s for standing in found) else 1


def prepare_bench(args: argparse.Namespace) -> Bench:
    """Settle config and rows, and write them to a folder named after all that the figures depend on."""
    entrants = parse_entrants(args.contestants.split(","), args.batch_size)
    config = bench_config(args)
    train = choose_rows(args.train, args.rows, config.run.seed)
    val = choose_rows(args.val, args.val_rows, config.run.seed)
    code = code_hash("observer/training", "eval/benchmarks/training")
    inputs = {"base": Path(config.model.base), "config": config.model_dump(mode="json"), "rows": [train, val]}
    key = fingerprint(inputs | {"code": code, "packages": environment()["packages"], "warm_up": args.warm_up})
    folder = args.work / f"{report_stem(args, 'cuda' if cuda_name() else 'cpu')}-{key[:8]}"
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "val.jsonl", val)
    config = config.with_split_files(folder / "train.jsonl", folder / "val.jsonl")
    n_tokens, device = count_tokens(config)
    return Bench(
        config=config,
        entrants=entrants,
        folder=folder,
        n_rounds=args.rounds,
        warm_up_steps=args.warm_up,
        n_rows=len(train) * args.epochs,
        n_tokens=n_tokens * args.epochs,
        n_val_rows=len(val),
        device=device,
    )


def bench_config(args: argparse.Namespace) -> Config:
    """The one config of all contestants: --config, then the arguments, then --set."""
    base = random_base(args.random_shape, vocab=args.vocab, dtype=args.dtype) if args.random_shape else args.base
    if not base.is_dir():
        raise ObserverError(f"--base {base}: no such folder; a model in Hugging Face format is needed")
    settings = {
        "model.base": base,
        "data.more": "[]",
        "model.dtype": args.dtype,
        "model.load_in_4bit": args.load_in_4bit,
        "training.num_train_epochs": args.epochs,
        "training.gradient_accumulation_steps": 1,
        "training.warmup_steps": 0,
        "training.grade_weight": 1,  # what TRL trains is the plain mean over all scored tokens
        "training.eval_steps": 10**9,
        "training.optim": "adamw_torch_fused" if cuda_name() else "adamw_torch",
        "run.device": "auto",
    }
    return load_config(args.config, [*(f"{name}={value}" for name, value in settings.items()), *args.overrides])


def choose_rows(path: Path, n_rows: int | None, seed: int) -> list[dict[str, Any]]:
    """Rows in a random order, so that both tasks are among the first. Raises ObserverError for faulty files."""
    rows = read_split(path)
    return random.Random(seed).sample(rows, min(n_rows or len(rows), len(rows)))


def count_tokens(config: Config) -> tuple[int, str]:
    """Tokens of the train rows, and the device they are trained on."""
    from observer.training.device import choose_runtime
    from observer.training.prepare import prepare

    runtime = choose_runtime(config)
    return sum(len(row) for row in prepare(config, runtime).splits.train), runtime.device


def cuda_name() -> str | None:
    """The GPU's name, None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def report_stem(args: argparse.Namespace, device: str) -> str:
    """Such as `training-nano-base-float32-cpu`."""
    base = f"random-{args.random_shape.partition(':')[0]}" if args.random_shape else args.base.name
    return f"training-{base}-{args.dtype}{'-4bit' if args.load_in_4bit else ''}-{device}"


def bench_facts(args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Where and on what it was measured."""
    t = bench.config.training
    facts = facts_of(args.command, gpu=cuda_name()) | {
        "rows": f"{bench.n_rows:,} a round ({args.epochs} epochs), {bench.n_tokens:,} real tokens, of {args.train}; "
        f"held out: {bench.n_val_rows:,} of {args.val}",
        "shared by all": f"LoRA r {bench.config.lora.r} on {', '.join(bench.config.lora.target_modules)}; {t.optim}, "
        f"learning rate {t.learning_rate:g}, {t.lr_scheduler_type}; seed {bench.config.run.seed}",
    }
    if args.random_shape:
        facts["note"] = "the weights are random: speed and memory are those of the shape, the losses teach nothing"
    elif (args.base / "card.json").exists():
        facts["note"] = STAND_IN_NOTE
    return facts


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    known = "; ".join(f"{name}: {contestant.title}" for name, contestant in CONTESTANTS.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--base", type=Path, default=NANO_BASE, help="folder of the base; default: %(default)s")
    base.add_argument("--random-shape", metavar="SHAPE", help="random weights instead: 0.6b, 0.6b:block_count=4, …")
    parser.add_argument("--vocab", type=Path, metavar="PATH", help="with --random-shape: a GGUF's tokenizer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: %(default)s")
    parser.add_argument("--load-in-4bit", action="store_true", help="the base in NF4")
    parser.add_argument("--config", type=Path, default=Path("configs/qwen3-0.6b.yaml"), help="LoRA and rate are its "
        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--train", type=Path, default=TRAIN_JSONL, help="default: %(default)s")
    parser.add_argument("--val", type=Path, default=VAL_JSONL, help="default: %(default)s")
    parser.add_argument("--rows", type=int, help="train rows, drawn at random; default: all")
    parser.add_argument("--val-rows", type=int, default=32, help="rows of the held-out NLL; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="rows a step; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the rows in a round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--warm-up", type=int, default=1, metavar="STEPS", help="steps before the first round, cold "
        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--contestants", default=",".join(DEFAULT_CONTESTANTS), help=f"default: %(default)s. {known}")
    parser.add_argument("--work", type=Path, default=WORK, help="records and logs; default: %(default)s")
    return parse_benchmark(parser, "eval.benchmarks.training.benchmark", arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
