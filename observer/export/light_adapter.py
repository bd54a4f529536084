"""A run's adapter as `models/` ships it: in bfloat16, half the size, with the run's config.

python -m observer.export.light_adapter outputs/smollm2 models/smollm2-observer

Of several runs, each of which trained the adapter of the one before further (`model.adapter`), the mean of the weights,
which errs less than either (Wortsman et al. 2022, "Model soups", arXiv:2203.05482), with the config of the last:

python -m observer.export.light_adapter outputs/first outputs/second models/smollm2-observer
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
from observer.errors import raise_all
from observer.files import atomic_path, write_text
from observer.runs.finished_run import read_run
from observer.weights.merge import read_lora_header

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_SCALE = ("r", "lora_alpha", "use_rslora")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="outputs/RUN, trained to the end")
    parser.add_argument("out", type=Path, metavar="DIR", help="where adapter and config are written")
    args = parser.parse_args(arguments)
    write_light_adapter(args.runs, args.out)
    print(f"{args.out / WEIGHTS}: {(args.out / WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return 0


def write_light_adapter(roots: Sequence[Path], out: Path) -> None:
    """Raises ObserverError when one is no run, its adapter is not whole, or has not the shapes of the last one's."""
    runs = [read_run(root) for root in roots]
    adapters = [run.paths.adapter for run in runs]
    headers = [read_lora_header(adapter)[0] for adapter in adapters]
    run, weights = runs[-1], [load_file(adapter / WEIGHTS) for adapter in adapters]
    shapes = [({name: tensor.shape for name, tensor in one.items()}, [header.get(name) for name in _SCALE])
              for header, one in zip(headers, weights, strict=True)]  # fmt: skip
    raise_all([f"{adapter}: other modules, rank or alpha than {adapters[-1]}; no mean of these means anything"
               for adapter, shape in zip(adapters, shapes, strict=True) if shape != shapes[-1]])  # fmt: skip
    mean = {name: torch.stack([one[name].float() for one in weights]).mean(0).bfloat16() for name in weights[-1]}
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / WEIGHTS) as temporary:
        save_file(mean, temporary, metadata={"format": "pt"})
    model = run.config.model  # named so that another machine finds it
    settings = headers[-1] | {
        "base_model_name_or_path": model.base,
        "revision": model.revision,
    }
    write_text(out / SETTINGS, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    write_text(out / run.paths.config.name, run.paths.config.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(run_cli(main))
