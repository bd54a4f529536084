"""A run's adapter as `models/` ships it: in bfloat16, half the size, with the run's config.

python -m observer.export.light_adapter outputs/smollm2 models/smollm2-observer
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from observer.console.run import run_cli
from observer.files import atomic_path, write_text
from observer.runs.finished_run import read_run
from observer.weights.checkpoint import read_json_object
from observer.weights.merge import read_lora_header

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="outputs/RUN, trained to the end")
    parser.add_argument("out", type=Path, metavar="DIR", help="where adapter and config are written")
    args = parser.parse_args(arguments)
    write_light_adapter(args.run, args.out)
    print(f"{args.out / WEIGHTS}: {(args.out / WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return 0


def write_light_adapter(root: Path, out: Path) -> None:
    """Raises ObserverError when `root` is no run, or its adapter is not whole."""
    run = read_run(root)
    adapter = run.paths.adapter
    read_lora_header(adapter)
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(adapter / WEIGHTS).items()}
    with atomic_path(out / WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    model = run.config.model  # named so that another machine finds it
    settings = read_json_object(adapter / SETTINGS) | {
        "base_model_name_or_path": model.base,
        "revision": model.revision,
    }
    write_text(out / SETTINGS, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    write_text(out / run.paths.config.name, run.paths.config.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(run_cli(main))
