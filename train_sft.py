"""Train the observer and get it ready for Ollama: one config in, an evaluated model out.

    python train_sft.py --config configs/nano.yaml              a stand-in base, two CPU cores, minutes
    python train_sft.py --config configs/smollm2.yaml           a pretrained model of 135M parameters, without a GPU
    python train_sft.py --config configs/qwen3-0.6b.yaml        Qwen3-0.6B with LoRA, one CUDA GPU
    python train_sft.py --config configs/qwen3-0.6b-4bit.yaml   the same over 4-bit weights (QLoRA)
    torchrun --nproc-per-node 2 train_sft.py --config …         two GPUs (or `accelerate launch`)

All of it goes to outputs/<run name>/: adapter, merged model, GGUF files, Modelfiles, logs and reports.
Run the same command again: it skips what is done, and resumes what was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.console.run import run_cli

if TYPE_CHECKING:
    from observer.config import Config
    from observer.training.device import Runtime
    from observer.training.prepare import Prepared

EXAMPLES = """\
examples:
  see what would happen, without network or GPU:
      --config configs/qwen3-0.6b.yaml --dry-run
  another learning rate, kept beside the first run:
      --config configs/nano.yaml --run-name fast --set training.learning_rate=4e-3
  another quantization of a trained run (the training is not repeated):
      --config configs/nano.yaml --set export.quantizations=[f16,q6_k]

Every key, its unit and its default: docs/reference/config.md. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)

    # What is asked for, and what can be refused before anything is loaded.
    from observer.config import load_config
    from observer.training.device import choose_runtime, prepare_backend

    config = load_config(args.config, args.overrides)
    runtime = choose_runtime(config, dry_run=args.dry_run)
    prepare_backend(runtime, dry_run=args.dry_run)  # unsloth comes before trl, transformers and peft

    # Rows and plan.
    from observer.training.prepare import plan_dry, prepare

    if args.dry_run:
        if runtime.launch.is_first:
            print(plan_dry(config, runtime, args.vocab).text)
        return 0

    # Of several processes the first one does everything; the others train along when it says so.
    from observer.files import check_writable
    from observer.runs.lock import held_for_one_run
    from observer.training.multiprocess.processes import join_processes

    join_processes(runtime.launch, runtime.device)
    prepared = prepare(config, runtime)
    if not runtime.launch.is_first:
        return train_along(prepared, runtime, resume=args.resume)
    print(prepared.plan.text, flush=True)
    paths = config.paths
    check_writable(paths.root, prepared.plan.bytes_missing(paths.root))
    with held_for_one_run(paths.lock):
        return make_everything(prepared, runtime, resume=args.resume, until=args.until)


def make_everything(prepared: Prepared, runtime: Runtime, *, resume: bool, until: str | None = None) -> int:
    """The stages of a run, or those up to `until`; each is skipped when it was done on the same inputs."""
    from observer.files import sha256_file, write_text
    from observer.runs.manifest import Manifest, fingerprint
    from observer.training.multiprocess.processes import leave_processes, tell

    config, base = prepared.config, prepared.base
    paths, base_hash = config.paths, sha256_file(base)
    write_text(paths.config, config.to_yaml())
    manifest = Manifest(paths.manifest)

    # Rows of your own are split, and written beside what is trained on them.
    if own_data := prepared.own_data:
        files = own_data.files(paths.data)
        inputs = {path.name: rows for path, rows in files.items()}
        manifest.run("data", inputs, [*files], lambda: own_data.write(paths.data))
        config = config.with_split_files(paths.data.train, paths.data.val)

    # Train: base, LoRA, TRL. What the result depends on goes into the fingerprint.
    train_inputs = prepared.training_inputs(config, runtime, base_hash)

    def train_with_all() -> dict[str, Any]:
        inputs = tell(runtime.launch, fingerprint(train_inputs))
        return train_adapter(prepared, runtime, inputs, resume=resume)

    if not manifest.run("train", train_inputs, [paths.adapter], train_with_all):
        tell(runtime.launch, None)
    leave_processes(runtime.launch)
    if until == "train":
        return 0

    # Merge: adapter and base become a model of its own.
    def merge() -> dict[str, Any]:
        from observer.weights.merge import merge_adapter

        dtype = "float32" if runtime.dtype == "float32" else None
        return vars(merge_adapter(paths.adapter, base, paths.merged, dtype=dtype))

    manifest.run("merge", {"adapter": paths.adapter, "base": base_hash, "dtype": runtime.dtype}, [paths.merged], merge)

    # Export: GGUF in 16 bits, the quantizations made from it, Modelfiles; each GGUF is compared with transformers.
    from observer.export.stages import export_stages
    from observer.runs.finished_run import Run

    modelfiles = export_stages(Run(prepared.config, paths), base, runtime.device, manifest)

    # Evaluate every quantization on the validation rows.
    from eval.evaluate import evaluate_run

    summary = paths.report("summary", "md")
    models = {quantization: paths.gguf(quantization) for quantization in config.export.quantizations}
    inputs = {**models, "train": config.data.train, "val": config.data.val, "limit": config.evaluation.limit}
    manifest.run("evaluate", inputs, [summary], lambda: evaluate_run(config, list(models.values()), summary))

    # A card to hand on with the weights: data, figures, limits, licence.
    from observer.export.model_card import write_model_card

    run = Run(config, paths)
    inputs = {"summary": summary, "config": config.model_dump(mode="json")}
    manifest.run("model card", inputs, [paths.model_card], lambda: write_model_card(run))

    print(f"\n{summary.read_text(encoding='utf-8')}\n{next_steps(config, modelfiles[:3])}")
    return 0


def train_adapter(prepared: Prepared, runtime: Runtime, inputs: str, *, resume: bool) -> dict[str, Any]:
    """Base, LoRA, training; every process of a launch does this."""
    from observer.training.model import attach_lora, load_base, trainable_line
    from observer.training.planning.memory import memory_errors_explained
    from observer.training.planning.plan import compare_with_plan
    from observer.training.sft import train

    config = prepared.config
    with memory_errors_explained(config, runtime, prepared.plan.memory_bytes):
        model = attach_lora(load_base(config, runtime, prepared.base), config, runtime)
        if runtime.launch.is_first:
            print(trainable_line(model), flush=True)
        notes = train(model, prepared.tokenizer, prepared.splits, config, runtime, inputs=inputs, resume=resume)
    is_whole = notes["steps"] == prepared.plan.steps and not notes["resumed_step"]
    if runtime.launch.is_first and is_whole:
        print(compare_with_plan(prepared.plan, notes["seconds"], notes["peak_bytes"]), flush=True)
    return notes


def train_along(prepared: Prepared, runtime: Runtime, *, resume: bool) -> int:
    """What every process but the first does: wait for its word, train with it, leave the rest to it."""
    from observer.training.multiprocess.processes import leave_processes, tell

    inputs = tell(runtime.launch)
    if inputs is not None:
        train_adapter(prepared, runtime, inputs, resume=resume)
    leave_processes(runtime.launch)
    return 0


def next_steps(config: Config, modelfiles: list[Path]) -> str:
    """What to type now."""
    names = [f"{config.run.name}{path.name.removeprefix('Modelfile')}" for path in modelfiles]
    lines = [f"  ollama create {name} -f {path}" for name, path in zip(names, modelfiles, strict=True)]
    return "\n".join(["Next:", *lines, f"  ollama run {names[0]}", f"Loss curve: {config.paths.loss_curve}"])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="the run's configuration")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE",
        help="override one value of the config; may be repeated",
    )  # fmt: skip
    parser.add_argument("--run-name", metavar="NAME", help="folder below outputs/ (short for --set run.name=NAME)")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint, whatever changed")
    parser.add_argument("--until", choices=("train",), help="stop after this stage; the rest waits for the next call")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; no network, no GPU needed")
    parser.add_argument("--vocab", type=Path, metavar="FILE.gguf", help="with --dry-run: count tokens with this")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if args.vocab and not args.dry_run:
        parser.error("--vocab is for --dry-run; a real run counts with the base's own tokenizer")
    if args.run_name is not None:
        args.overrides.append(f"run.name={json.dumps(args.run_name)}")  # a name is text to YAML, also `2026-11-29`
    return args


if __name__ == "__main__":
    sys.exit(run_cli(main))
