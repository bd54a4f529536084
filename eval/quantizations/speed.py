"""How fast and how large one GGUF is on this machine.

Measured in a process of its own, which this file is: memory once taken by another model would count as this one's.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.answers.rows import of_task
from observer.console.run import run_cli
from observer.engine.engine import Engine
from observer.engine.llama_context import BatchToken, LlamaContext
from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.paths import python_path
from observer.prompts import Task, exchange_of, render_prompt
from observer.training.planning.memory import peak_memory

_PREFILL_TOKENS = 512
_DECODE_TOKENS = 64
_REPEATS = 3
_TTFT_ROWS = 8


@dataclass(frozen=True)
class Speed:
    """One model's costs. None where there were no rows of the task.

    `load_s`: until the engine is open, from the disk's cache if the file is in it. `peak_bytes`: the largest resident
    set, with the pages of the mapped file. `prefill_tokens_per_s`: one prompt of 512 tokens. `decode_tokens_per_s`: one
    answer alone. `ttft_ms`: from the exchange to the first token of its extraction, the instruction cached. Examples
    are whole ones, prompts included, in the engine's batches; the first call of each task is left out.
    """

    load_s: float
    peak_bytes: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_ms: float | None
    grade_examples_per_s: float | None
    extract_examples_per_s: float | None


def measure_speed(model: Path, rows: Sequence[dict[str, Any]], *, n_threads: int | None = None) -> Speed:
    """Measure a GGUF on lines of a split file. Raises ObserverError with the process's last words when it fails."""
    exchanges = {task: [exchange_of(row) for row in of_task(rows, task)] for task in Task}
    request = {"model": str(model), "n_threads": n_threads, "exchanges": exchanges}
    command = [sys.executable, "-m", "eval.quantizations.speed"]
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, encoding="utf-8", env=environment
    )
    if done.returncode != 0:
        last = next(iter(done.stderr.strip().splitlines()[-1:]), f"ended with exit code {done.returncode}")
        raise ObserverError(last.removeprefix("error: "))
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(model: Path, exchanges: dict[str, list[str]], n_threads: int | None) -> Speed:
    """What the child does; memory is that of the whole process."""
    start = time.perf_counter()
    with Engine(model, n_threads=n_threads) as engine:
        load_s = time.perf_counter() - start
        grade, extract = exchanges[Task.GRADE], exchanges[Task.EXTRACT]
        prefill, decode = _raw_speeds(engine, [*extract, *grade])
        return Speed(
            load_s=load_s,
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
            ttft_ms=_ttft_ms(engine, extract),
            grade_examples_per_s=_examples_per_s(engine.grade, grade),
            extract_examples_per_s=_examples_per_s(engine.extract, extract),
            peak_bytes=peak_memory("cpu"),
        )


def _raw_speeds(engine: Engine, exchanges: Sequence[str]) -> tuple[float, float]:
    """Tokens/s of reading one long prompt, and of writing one answer; medians."""
    model = engine.model
    n_prefill = min(_PREFILL_TOKENS, model.n_ctx_train - _DECODE_TOKENS)
    prompt, n_ctx = _long_prompt(model, exchanges, n_prefill), n_prefill + _DECODE_TOKENS
    context = LlamaContext(model, n_ctx=n_ctx, n_seq_max=1, n_threads=engine.n_threads, flash_attn=True)
    with closing(context):
        _read(context, prompt)  # the first call allocates
        turns = [_one_turn(context, prompt) for _ in range(_REPEATS)]
    prefill_s, decode_s = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
    return n_prefill / prefill_s, _DECODE_TOKENS / decode_s


def _long_prompt(model: LlamaModel, exchanges: Sequence[str], n_tokens: int) -> list[int]:
    """The rows' own text, one prompt after the other and over again."""
    text = "\n".join(render_prompt(Task.EXTRACT, exchange) for exchange in exchanges[:_TTFT_ROWS] or ("",))
    tokens = model.tokenize(text)
    return (tokens * (n_tokens // len(tokens) + 1))[:n_tokens]


def _one_turn(context: LlamaContext, prompt: Sequence[int]) -> tuple[float, float]:
    start = time.perf_counter()
    token = _read(context, prompt)
    read = time.perf_counter()
    for place in range(len(prompt), len(prompt) + _DECODE_TOKENS):
        ((_, logits),) = context.decode([BatchToken(token, place, (0,), True)])
        token = int(logits.argmax())
    return read - start, time.perf_counter() - read


def _read(context: LlamaContext, prompt: Sequence[int]) -> int:
    context.clear(0)
    last = len(prompt) - 1
    ((_, logits),) = context.decode([BatchToken(token, n, (0,), n == last) for n, token in enumerate(prompt)])
    return int(logits.argmax())


def _ttft_ms(engine: Engine, exchanges: Sequence[str]) -> float | None:
    """Median over a few exchanges, each alone."""
    first_token = functools.partial(engine.generate, Task.EXTRACT, max_new_tokens=1)
    chosen = exchanges[:_TTFT_ROWS]
    first_token(chosen[:1])
    return 1000 * statistics.median(_seconds(first_token, [exchange]) for exchange in chosen) if chosen else None


def _examples_per_s(answer: Callable[[Sequence[str]], Any], exchanges: Sequence[str]) -> float | None:
    if not exchanges:
        return None
    answer(sorted(exchanges, key=len)[-1:])  # opens the context, reads the instruction, builds the grammar
    return len(exchanges) / _seconds(answer, exchanges)


def _seconds(answer: Callable[[Sequence[str]], Any], exchanges: Sequence[str]) -> float:
    start = time.perf_counter()
    answer(exchanges)
    return time.perf_counter() - start


def main() -> int:
    """Of the child: a request as JSON on stdin, its answer on stdout."""
    request = json.load(sys.stdin)
    print(json.dumps(asdict(measure_here(Path(request["model"]), request["exchanges"], request["n_threads"]))))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
