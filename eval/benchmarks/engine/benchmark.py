"""Our engine beside llama-cpp-python's chat calls and llama.cpp's own server: examples a second on the same rows.

    python -m eval.benchmarks.engine.benchmark --model outputs/nano/gguf/nano-q4_k_m.gguf --rows 64 --rounds 3
    python -m eval.benchmarks.engine.benchmark --random-shape 0.6b --vocab FOLDER --type q4_k_m --max-new-tokens 64
    python -m eval.benchmarks.engine.benchmark --model FILE.gguf --llama-server PATH/llama-server

Rounds take turns, since a shared machine changes its pace within minutes; every contestant stays loaded, is greedy, has
all cores, and may write as much as the others. With --random-shape the weights are random but for a head that recites
one valid extraction (`eval/benchmarks/reciting_base.py`): its speed is that of the shape, its answers say nothing. Cut,
it goes on with the same command. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from eval.answers.origin import code_hash, facts_of
from eval.answers.rows import of_task, rows_of_split, take
from eval.benchmarks.engine.engines import SERVER, TITLES, ChatCompletion, Contestant, Limits, Ours, Rows, Turn
from eval.benchmarks.engine.report import ModelSize, floors, sections, standings, summary
from eval.benchmarks.engine.server import LlamaServer
from eval.benchmarks.harness import Record, Records, failures, parse_benchmark, say, take_turns, write_benchmark
from eval.benchmarks.reciting_base import NAME, add_model_options, note_on, reciting_gguf
from observer.console.run import run_cli
from observer.engine.llama_context import BatchToken, LlamaContext
from observer.engine.llama_model import LlamaModel, usable_cores
from observer.errors import ObserverError
from observer.prompts import IM_END, Task, exchange_of, render_turn
from observer.runs.manifest import fingerprint
from observer.schema import Label
from observer.weights.gguf_header import read_header

WORK = Path("outputs/benchmark-engine")
_WARM_UP_ROWS = 2
_CALL_TOKENS = (1, 2, 4, 8, 16, 32, 63)
_CALL_HELD = 200
_CALL_REPEATS = 5
_MATRIX = (1024, 1024, 3072)
_MATRIX_REPEATS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    model = args.model or reciting_gguf(args.random_shape, args.type, vocab=args.vocab, work=args.work)
    rows = choose_rows(args.split, args.rows, earlier=NAME if args.random_shape else "")
    limits = limits_of(model, args)
    names = chosen_names(args)
    code = code_hash(*(f"eval/benchmarks/engine/{name}.py" for name in ("engines", "report", "server")))
    key = fingerprint({"model": model, "rows": rows, "limits": asdict(limits), "code": code})
    folder = args.work / f"engine-{model.stem}-{key[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    records = run_rounds(names, model, rows, limits, args, folder)
    n_rows = {str(task): len(rows[task]) for task in Task}
    found, under = standings(records, n_rows), floors(records, model_size(model))
    failed, calls = failures(records), call_ms(model, limits.n_threads)
    figures = {"standings": [asdict(one) for one in found], "floors": [asdict(floor) for floor in under]}
    write_benchmark(
        args.out / f"engine-{model.stem}", f"Engine, {model.stem}", bench_facts(args, model, limits, n_rows),
        sections(found, under, calls, failed), figures | {"call_ms": calls, "failed": failed}, summary(found),
    )  # fmt: skip
    return 0 if found and not failed else 1


def choose_rows(split: str, n_rows: int | None, earlier: str = "") -> Rows:
    """Rendered exchanges of `n_rows` rows of each task, evenly spread over the split, after a message said before."""
    chosen = take(rows_of_split(split), n_rows)
    before = f"{render_turn('user', earlier)}\n" if earlier else ""
    rows: Rows = {task: [before + exchange_of(row) for row in of_task(chosen, task)] for task in Task}
    if not any(rows.values()):
        raise ObserverError(f"--split {split}: no rows; name a split that has some")
    return rows


def limits_of(model: Path, args: argparse.Namespace) -> Limits:
    """A label that is written out may have the tokens of the longest and its end."""
    loaded = LlamaModel(model)
    label_tokens = max(len(loaded.tokenize(label + IM_END)) for label in Label)
    loaded.close()
    return Limits(label_tokens, args.max_new_tokens, args.threads or usable_cores(), args.n_seq)


def chosen_names(args: argparse.Namespace) -> list[str]:
    """Contestants by name, ours first. Raises ObserverError for unknown ones."""
    names = [name for name in TITLES if name != SERVER or args.llama_server]
    if args.contestants:
        names = args.contestants.split(",")
    if unknown := [name for name in names if name not in TITLES]:
        raise ObserverError(f"--contestants: unknown {', '.join(unknown)}; known: {', '.join(TITLES)}")
    if SERVER in names and not args.llama_server:
        raise ObserverError(f"--contestants {SERVER}: name its binary with --llama-server PATH")
    return sorted({"ours", *names}, key=list(TITLES).index)


def run_rounds(
    names: Sequence[str], model: Path, rows: Rows, limits: Limits, args: argparse.Namespace, folder: Path
) -> list[Record]:
    """Take turns until every contestant has its rounds on record; one that fails is left out from then on."""
    opened: dict[str, Contestant] = {}
    rate = functools.cache(lambda number: gflop_per_s(limits.n_threads))
    with ExitStack() as stack:

        def take_one(name: str, number: int) -> Record:
            now = rate(number)
            if name not in opened:
                opened[name] = stack.enter_context(closing(open_contestant(name, model, limits, args, folder)))
                opened[name].answer({task: rows[task][:_WARM_UP_ROWS] for task in Task})
            turn = opened[name].answer(rows)
            say(f"round {number}/{args.rounds}  {name:<15} {_speeds(rows, turn)}")
            return {"gflop_per_s": now} | asdict(turn)

        return take_turns(names, args.rounds, Records(folder / "rounds.jsonl"), take_one)


def _speeds(rows: Rows, turn: Turn) -> str:
    return ", ".join(f"{task} {len(rows[task]) / turn.seconds[task]:,.1f}/s" for task in Task if rows[task])


def open_contestant(name: str, model: Path, limits: Limits, args: argparse.Namespace, folder: Path) -> Contestant:
    if name == SERVER:
        return LlamaServer(args.llama_server, model, limits, folder / f"{SERVER}.log")
    if name.startswith("chat"):
        return ChatCompletion(model, limits, is_tuned=name == "chat-cached")
    return Ours(model, limits, drafts=name == "ours")


def gflop_per_s(n_threads: int) -> float:
    """What this machine multiplies now: the fastest of several float32 products of the shape of a layer."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    rows, inner, columns = _MATRIX
    one, other = torch.randn(rows, inner), torch.randn(inner, columns)
    seconds = []
    for _ in range(_MATRIX_REPEATS):
        start = time.perf_counter()
        torch.mm(one, other)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * rows * inner * columns / min(seconds) / 1e9


def call_ms(model: Path, n_threads: int) -> dict[int, float]:
    """Tokens of a decode call of one row -> milliseconds, the fastest of several. All of them want logits."""
    found: dict[int, float] = {}
    with (
        closing(LlamaModel(model)) as loaded,
        closing(LlamaContext(loaded, n_ctx=512, n_seq_max=1, n_threads=n_threads, flash_attn=True)) as context,
    ):
        (token,) = loaded.tokenize("a")
        context.hold(0, [token] * _CALL_HELD)
        for n_tokens in _CALL_TOKENS:
            batch = [BatchToken(token, _CALL_HELD + n, (0,), True) for n in range(n_tokens)]
            seconds = []
            for _ in range(_CALL_REPEATS):
                start = time.perf_counter()
                for _ in context.decode_together(batch):
                    pass
                seconds.append(time.perf_counter() - start)
                context.cut(0, _CALL_HELD)
            found[n_tokens] = min(seconds) * 1000
    return found


def model_size(model: Path) -> ModelSize:
    """Counted in the file: all matrices of the layers, and the head or what stands in for it."""
    shapes = read_header(model).tensor_shapes
    body = sum(shape[0] * shape[1] for name, shape in shapes.items() if name.startswith("blk.") and len(shape) == 2)
    head = shapes.get("output.weight") or shapes["token_embd.weight"]
    return ModelSize(body, head[0] * head[1])


def bench_facts(args: argparse.Namespace, model: Path, limits: Limits, n_rows: dict[str, int]) -> dict[str, str]:
    """Where and on what it was measured."""
    facts = facts_of(args.command, n_threads=limits.n_threads) | {
        "model": f"`{model}`, {model.stat().st_size / 1e6:,.1f} MB",
        "rows": f"of `{args.split}`: {', '.join(f'{n} to {task}' for task, n in n_rows.items())}, {args.rounds} rounds",
        "limits of all": f"{limits.label_tokens} tokens for a label that is written, {limits.extract_tokens} for an "
        f"extraction; {limits.n_seq} sequences or slots where there are several",
    }
    note = note_on(model.stem)
    return facts | ({"note": note} if note else {})


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    known = "; ".join(f"{name}: {title}" for name, title in TITLES.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_model_options(parser, "q4_k_m").add_argument("--model", type=Path, metavar="FILE.gguf")
    add("--split", default="val", help="rows to answer, as in eval/evaluate.py; default: %(default)s")
    add("--rows", type=int, default=64, metavar="N", help="rows of each task; default: %(default)s")
    add("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="of an extraction; default: %(default)s")
    add("--n-seq", type=int, default=16, metavar="N", help="the engine's sequences, the server's slots; %(default)s")
    add("--threads", type=int, metavar="N", help="of every contestant; default: all cores")
    add("--contestants", help=f"of all, if not these: a comma list; {known}")
    add("--llama-server", type=Path, metavar="BINARY", help="llama.cpp's server, built by you; adds it")
    add("--work", type=Path, default=WORK, help="records and reciting models; default: %(default)s")
    return parse_benchmark(parser, "eval.benchmarks.engine.benchmark", arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
