"""Our converter beside llama.cpp's, in one run: the same bytes? how long? how much memory?

    python -m eval.benchmarks.export --converter LLAMA.CPP/convert_hf_to_gguf.py --vocab FOLDER

Both converters run as programs of their own, in turn, on the nano model, on a block each of other architectures and
(with --vocab) on random weights in Qwen3-0.6B's full shape with Qwen's vocabulary. Wall time is the best of two
turns, with start-up; memory is the largest resident set. llama.cpp's converter is in the source archive of
llama-cpp-python and needs `sentencepiece`. Writes docs/benchmarks/export.md; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.answers.origin import facts_of
from eval.benchmarks.harness import parse_benchmark, say, write_benchmark
from eval.benchmarks.random_base import RANDOM_BASES, random_base
from eval.reports.tables import table
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.paths import NANO_BASE, python_path
from observer.weights.checkpoint import list_tensors, read_shape

DIRECT_TYPES = ("f32", "bf16", "f16", "q8_0")
N_TURNS = 2
SHAPES = "qwen2.5-0.5b,smollm2-135m,llama-3.2-1b"
ONE_BLOCK = "block_count=1,vocab_size=2560"
"""Enough for every kind of tensor; the vocabulary is the nano model's."""
_NAME_KEYS = {f"general.{key}" for key in ("name", "basename", "finetune", "version", "organization")}
"""What llama.cpp's converter reads out of a folder's name."""
_OURS = "import sys; from pathlib import Path; from observer.export.gguf.write import write_gguf; "
_OURS += "write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], name=sys.argv[4])"

_WATCH = """
import json, os, sys, time
start = time.monotonic()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
print(json.dumps({"seconds": time.monotonic() - start, "peak_bytes": 1024 * usage.ru_maxrss}))  # Linux counts in KiB
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process between us and what is measured: Linux begins a child's largest resident set at its parent's."""
_THEIRS = """
import runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
folder = Path(sys.argv[0]).parent
sys.path[:0] = [str(folder), str(folder / "gguf-py")]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Their converter knows tokenizers by a hash of what they do to a text, and the nano model's is none of those: it is
told the pattern. Nothing else of it is changed."""


@dataclass(frozen=True)
class Turn:
    """One conversion: wall seconds and the largest resident set."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Best of several turns of each; `bound_bytes` is what a conversion of ours may take."""

    model: str
    file_type: str
    bound_bytes: int
    ours: Turn
    theirs: Turn
    n_tensors: int
    differing_tensors: list[str]
    differing_keys: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    models = {"nano": NANO_BASE}
    if args.vocab:
        models["random weights, 0.6B shape"] = random_base("0.6b", vocab=args.vocab)
    for shape in filter(None, args.shapes.split(",")):
        models[f"random weights, a block of {shape}"] = random_base(f"{shape}:{ONE_BLOCK}")
    comparisons = []
    RANDOM_BASES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RANDOM_BASES) as folder:
        for name, model in models.items():
            for file_type in DIRECT_TYPES:
                comparisons.append(compare(name, model, file_type, args.converter, Path(folder)))
                say(f"benchmark: {name} {file_type}: {comparisons[-1].ours}, llama.cpp's {comparisons[-1].theirs}")
    figures = {"comparisons": [asdict(one) for one in comparisons]}
    write_benchmark(
        args.out / "export", "Export: our converter beside llama.cpp's", facts_of(args.command),
        [comparison_table(comparisons)], figures, {"n_compared": len(comparisons)},
    )  # fmt: skip
    return 0


def compare(name: str, model: Path, file_type: str, converter: Path, folder: Path) -> Comparison:
    """Convert with both in turn, N_TURNS times, and compare the last files."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    mine: list[Turn] = []
    others: list[Turn] = []
    for _ in range(N_TURNS):
        mine.append(timed([sys.executable, "-c", _OURS, str(model), str(ours), file_type, "model"]))
        arguments = [str(model), "--outfile", str(theirs), "--outtype", file_type, "--model-name", "model"]
        others.append(timed([sys.executable, "-c", _THEIRS, str(converter), *arguments]))
    shapes = [tensor.shape for tensor in list_tensors(model, read_shape(model))]
    bound_bytes = int(1.2 * 4 * max(map(math.prod, shapes))) + 300 * 10**6  # the largest tensor in f32, and 300 MB
    return Comparison(name, file_type, bound_bytes, best(mine), best(others), len(shapes), *differences(ours, theirs))


def timed(command: Sequence[str]) -> Turn:
    """Run a program to its end. Raises ObserverError with its last words when it fails."""
    environment = os.environ | {"PYTHONPATH": python_path()}
    watch = [sys.executable, "-c", _WATCH, *command]
    done = subprocess.run(watch, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode != 0:
        words = "\n  ".join(done.stderr.splitlines()[-5:])
        raise ObserverError(f"{shlex.join(command[:2])} … failed with exit code {done.returncode}:\n  {words}")
    return Turn(**json.loads(done.stdout.splitlines()[-1]))


def best(turns: Sequence[Turn]) -> Turn:
    return Turn(min(turn.seconds for turn in turns), max(turn.peak_bytes for turn in turns))


def differences(ours: Path, theirs: Path) -> tuple[list[str], list[str]]:
    """Tensors whose bytes, types or shapes differ, and keys (names apart) whose values do."""
    from observer.weights.gguf_header import read_header

    mine, others = tensor_hashes(ours), tensor_hashes(theirs)
    tensors = [name for name in sorted(mine.keys() | others.keys()) if mine.get(name) != others.get(name)]
    left, right = read_header(ours).metadata, read_header(theirs).metadata
    keys = sorted((left.keys() | right.keys()) - _NAME_KEYS)
    return tensors, [key for key in keys if left.get(key) != right.get(key)]


def tensor_hashes(path: Path) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Name -> type, SHA-256 of the bytes, shape."""
    import gguf

    return {
        tensor.name: (tensor.tensor_type.name, hashlib.sha256(tensor.data.tobytes()).hexdigest(), tuple(tensor.shape))
        for tensor in gguf.GGUFReader(path).tensors
    }


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    lines = []
    for c in comparisons:
        equal = f"{c.n_tensors - len(c.differing_tensors)} of {c.n_tensors}"
        time = [f"{c.ours.seconds:.1f}", f"{c.ours.seconds / c.theirs.seconds:.2f}"]
        memory = [f"{c.ours.peak_bytes / 1e6:,.0f}", f"{c.ours.peak_bytes / c.theirs.peak_bytes:.2f}"]
        keys = ", ".join(c.differing_keys) or "none"
        lines.append([c.model, c.file_type, equal, keys, *time, *memory, f"{c.bound_bytes / 1e6:,.0f}"])
    header = ["model", "type", "tensors equal", "differing keys", "seconds", "to llama.cpp's", "peak MB", "to theirs"]
    return table([*header, "bound"], lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--vocab", type=Path, metavar="PATH", help="Qwen's vocabulary as GGUF, or its folder; adds the 0.6B shape")
    add("--shapes", default=SHAPES, metavar="NAME,…", help="a block each of other architectures (%(default)s)")
    add("--converter", type=Path, required=True, metavar="FILE.py", help="llama.cpp's convert_hf_to_gguf.py")
    return parse_benchmark(parser, "eval.benchmarks.export", arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
