"""Check on a CUDA machine that training works as it was written without one, and measure it: one page, 8 minutes.

    python -m eval.benchmarks.gpu_check.check

Numbers first: attention in one call against dense attention, a forest's loss against padded rows, through transformers
and Unsloth, in 16 bits and NF4; kernels launched a step; a run stopped and resumed. Then speed, with what time is
left: `eval.benchmarks.training.benchmark` with all contestants on Qwen3-0.6B's shape. A part that fails or takes too
long is on the page as such, and the others go on. Exit code 1 where one failed, or where there is no CUDA GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.answers.origin import facts_of
from eval.benchmarks.gpu_check.parts import PARTS, Finding
from eval.reports.tables import bullets, page, table
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import write_text
from observer.paths import PROJECT_ROOT
from observer.training.cuda import cuda_obstacle, list_gpus, torch_cuda

LIMIT_S = 480.0
PART_LIMIT_S = 90.0
"""Of a part before the benchmark, so that one that hangs leaves time for the others."""
BENCHMARK = [
    "-m", "eval.benchmarks.training.benchmark", "--random-shape", "0.6b", "--rows", "256", "--rounds", "2",
    "--warm-up", "12", "--batch-size", "16", "--contestants",
    "ours,ours-compiled,unsloth-tuned,unsloth,ours-transformers,trl",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A part's findings, or why there are none."""

    name: str
    seconds: float
    findings: list[Finding]
    error: str = ""

    @property
    def is_right(self) -> bool:
        return not self.error and all(finding.is_right is not False for finding in self.findings)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    gpu = require_gpu() if args.device == "cuda" else "no GPU: a trial on the CPU"
    report = args.out / f"gpu-check-{'-'.join(gpu.partition(',')[0].lower().replace(':', '').split())}.md"
    ends = time.monotonic() + LIMIT_S
    results: list[Result] = []
    for name in args.parts.split(","):
        left_s = ends - time.monotonic()
        results.append(run_part(name, args.device, left_s if name == "speed" else min(left_s, PART_LIMIT_S)))
        write_text(report, to_markdown(gpu, results))  # after each part: whatever ends the check leaves what is known
        state = "right" if results[-1].is_right else "FAILED"
        print(f"{name}: {state} in {results[-1].seconds:.0f} s  {results[-1].error}", file=sys.stderr, flush=True)
    print(f"wrote {report}")
    return 0 if all(result.is_right for result in results) else 1


def require_gpu() -> str:
    """The GPU's name and driver. Raises ObserverError where torch cannot use one."""
    import torch

    if not torch.cuda.is_available():
        obstacle = cuda_obstacle(list_gpus(), torch_cuda()) or "no CUDA GPU is found here; run it on a machine with one"
        raise ObserverError(f"gpu-check: {obstacle}")
    gpus = list_gpus()
    return f"{gpus[0].name}, driver {gpus[0].driver}" if gpus else torch.cuda.get_device_name(0)


def run_part(name: str, device: str, limit_s: float) -> Result:
    """In a process of its own: what it breaks is broken there."""
    command = BENCHMARK if name == "speed" else ["-m", "eval.benchmarks.gpu_check.parts", name, device]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=max(limit_s, 1)
        )
    except subprocess.TimeoutExpired:
        again = f"; to go on: python {' '.join(BENCHMARK)}" if name == "speed" else ""
        return Result(name, time.monotonic() - began, [], f"not done after {limit_s:.0f} s{again}")
    seconds = time.monotonic() - began
    lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")
    if done.returncode:
        return Result(name, seconds, [], f"exit code {done.returncode}: {last}")
    answer = json.loads(last)
    return Result(name, seconds, speed_findings(answer) if name == "speed" else [Finding(**part) for part in answer])


def speed_findings(answer: dict[str, dict[str, float]]) -> list[Finding]:
    """Of the benchmark's last line."""
    found = [Finding(f"{name}, tokens/s", f"{speed:,.0f}") for name, speed in answer["tokens_per_s"].items()]
    found += [Finding(name, str(error), False) for name, error in answer["failed"].items()]
    return [*found, Finding("report", str(answer["report"]))]


def to_markdown(gpu: str, results: Sequence[Result]) -> str:
    facts = facts_of("make gpu-check", gpu=gpu)
    parts = [bullets(facts | {"versions": f"{facts['versions']}, CUDA {torch_cuda()}"})]
    for result in results:
        rows = [[f.name, f.figure, {True: "right", False: "WRONG", None: ""}[f.is_right]] for f in result.findings]
        heading = f"## {result.name}: {'right' if result.is_right else 'FAILED'}, {result.seconds:.0f} s"
        parts += [heading, result.error, table(["what", "found", ""], rows) if rows else ""]
    return page(f"GPU check: {gpu}", *parts)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ",".join([*PARTS, "speed"])
    parser.add_argument("--parts", default=every, help="default: %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the check itself")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    unknown = set(args.parts.split(",")) - set(every.split(","))
    if unknown:
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; known: {every}")
    return args


if __name__ == "__main__":
    sys.exit(run_cli(main))
