"""Train the observer and get it ready for Ollama: one config in, an evaluated model out.

    python train_sft.py --config configs/nano.yaml              a stand-in base, two CPU cores, minutes
    python train_sft.py --config configs/qwen3-0.6b.yaml        Qwen3-0.6B with LoRA, one CUDA GPU
    python train_sft.py --config configs/qwen3-0.6b-4bit.yaml   the same over 4-bit weights (QLoRA)

All of it goes to outputs/<run name>/: adapter, merged model, GGUF files, Modelfiles, logs and reports.
Run the same command again and it skips what is done, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from observer.errors import run_cli

EXAMPLES = """\
examples:
  see what would happen, without network or GPU:
      --config configs/qwen3-0.6b.yaml --dry-run
  another learning rate, kept beside the first run:
      --config configs/nano.yaml --run-name fast --set training.learning_rate=4e-3
  another quantization of a trained run (the training is not repeated):
      --config configs/nano.yaml --set export.quantizations=[f16,q6_k]

Every key, its unit and its default: observer/config.py. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
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
    from observer.training.prepare import prepare, prepare_dry

    if args.dry_run:
        print(prepare_dry(config, runtime, args.vocab).plan.text)
        return 0
    prepared = prepare(config, runtime)
    print(prepared.plan.text, flush=True)

    from observer.files import check_writable, sha256_file, write_text
    from observer.manifest import Manifest, fingerprint
    from observer.training.stages import Stages

    paths = config.paths
    check_writable(paths.root, prepared.plan.bytes_missing(paths.root))
    write_text(paths.config, config.to_yaml())
    stage = Stages(Manifest(paths.manifest))
    base, base_hash = prepared.base, sha256_file(prepared.base)

    # Rows of your own are split, and written beside what is trained on them.
    if own_data := prepared.own_data:
        files = own_data.files(paths.data)
        stage("data", {path.name: rows for path, rows in files.items()}, [*files], lambda: own_data.write(paths.data))
        config = config.with_split_files(paths.data.train, paths.data.val)

    # Train: base, LoRA, TRL. What the result depends on goes into the fingerprint.
    train_inputs = prepared.training_inputs(config, runtime, base_hash)

    def train_adapter() -> dict[str, Any]:
        from observer.training.model import attach_lora, load_base, trainable_line
        from observer.training.sft import train

        model = attach_lora(load_base(config, runtime, base), config, runtime)
        print(trainable_line(model), flush=True)
        return train(
            model, prepared.tokenizer, prepared.splits, config, runtime,
            inputs=fingerprint(train_inputs), resume=args.resume,
        )  # fmt: skip

    stage("train", train_inputs, [paths.adapter], train_adapter)

    # Merge: adapter and base become a model of its own.
    def merge() -> dict[str, Any]:
        from observer.training.merge import merge_adapter

        dtype = "float32" if runtime.dtype == "float32" else None
        return vars(merge_adapter(paths.adapter, base, paths.merged, dtype=dtype))

    stage("merge", {"adapter": paths.adapter, "base": base_hash, "dtype": runtime.dtype}, [paths.merged], merge)

    # Export: GGUF in 16 bits, the quantizations made from it, each opened again to check it.
    from observer.export.gguf import write_gguf
    from observer.export.modelfile import VARIANTS, write_modelfiles
    from observer.export.quantize import quantize, verify_gguf
    from observer.prompts import OLLAMA_TEMPLATE, SYSTEM_PROMPTS

    full = paths.gguf("f16")

    def export_full() -> None:
        verify_gguf(write_gguf(paths.merged, full, "f16", name=config.run.name), expected_file_type="f16")

    def export(quantization: str) -> dict[str, Any]:
        report = quantize(full, paths.gguf(quantization), quantization)
        verify_gguf(paths.gguf(quantization), expected_file_type=quantization)
        return {"size_bytes": report.size_bytes, "fallbacks": report.fallbacks}

    stage("gguf f16", {"merged": paths.merged, "name": config.run.name}, [full], export_full)
    for quantization in config.export.quantizations:
        if quantization != "f16":
            inputs = {"f16": full, "quantization": quantization}
            stage(f"gguf {quantization}", inputs, [paths.gguf(quantization)], lambda q=quantization: export(q))

    # Package: Modelfiles over the last quantization of the list.
    shipped = config.export.quantizations[-1]
    inputs = {"export": config.export.model_dump(), "prompts": SYSTEM_PROMPTS, "template": OLLAMA_TEMPLATE}
    modelfiles = [paths.modelfile(variant) for variant in VARIANTS]

    def package() -> None:
        write_modelfiles(paths, config.export, shipped)

    stage("modelfiles", inputs, modelfiles, package)

    # Evaluate every quantization on the validation rows.
    from eval.after_training import evaluate_run

    summary = paths.report("summary", "md")
    models = {quantization: paths.gguf(quantization) for quantization in config.export.quantizations}
    inputs = {**models, "train": config.data.train, "val": config.data.val, "limit": config.evaluation.limit}
    stage("evaluate", inputs, [summary], lambda: evaluate_run(config, list(models.values()), summary))

    print(f"\n{summary.read_text(encoding='utf-8')}\n{next_steps(config, modelfiles)}")
    return 0


def next_steps(config: Any, modelfiles: list[Path]) -> str:
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
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint whatever changed")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; no network, no GPU needed")
    parser.add_argument("--vocab", type=Path, metavar="FILE.gguf", help="with --dry-run: count tokens with this")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if args.vocab and not args.dry_run:
        parser.error("--vocab is for --dry-run; a real run counts with the base's own tokenizer")
    if args.run_name:
        args.overrides.append(f"run.name={args.run_name}")
    return args


if __name__ == "__main__":
    sys.exit(run_cli(main))
