"""One Observer under many callers at once: nothing lost, nothing swapped, memory flat, and how long answers take.

    python -m tests.trust.load.load --minutes 10 --callers 64 --model outputs/nano

Three parts. `threads` and `tasks` share an Observer of the model in this process, half of the minutes each: 64 threads
that wait, then 64 tasks of an event loop that await. `server` is the client of an Ollama server under the same callers,
for --server-minutes: the server runs on loopback and has the engine's answers by heart, so what is tested is the
client; every 200th question is refused with 503 first and has to be asked again.

Callers ask again as soon as they have their answer, so latencies are those of a full queue. Every request has a number,
and its answer is compared with the one that its turn gets alone. Writes outputs/trust/load.json; the last line of
stdout is its summary.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eval.answers.origin import command_line
from observer.client import Observer
from observer.console.arguments import positive
from observer.console.durations import format_duration
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.observation import Exchange
from tests.trust.load.account import Account, Ledger
from tests.trust.load.callers import Manner, drive
from tests.trust.load.memory import (
    FLAT_MB_PER_MIN,
    MemorySampler,
    MemoryUse,
    has_thread_caches,
    memory_use,
    restart_without_thread_caches,
)
from tests.trust.result import TRUST_FOLDER, save_result

PARTS = ("threads", "tasks", "server")
UNAVAILABLE_EVERY = 200
_MOST_PER_S = 2_000
"""Requests a second that the ledger reserves room for; a faster client would end its part early."""


@dataclass(frozen=True)
class Part:
    """One part's account and memory. `name` is `threads`, `tasks`, `server threads` or `server tasks`."""

    name: str
    seconds: float
    account: Account
    memory: MemoryUse

    @property
    def passed(self) -> bool:
        return self.account.is_whole and self.memory.is_flat


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = parse_arguments(arguments)
    began = time.monotonic()
    parts = run_parts(args)
    passed, summary = all(part.passed for part in parts), summarize(parts, args.callers)
    command = command_line("-m tests.trust.load.load", arguments)
    details = {
        "model": str(args.model),
        "callers": args.callers,
        "turns": args.turns,
        "flat_mb_per_min": FLAT_MB_PER_MIN,
        "thread_caches": has_thread_caches(),
        "server": f"loopback, recorded answers of the model, every {UNAVAILABLE_EVERY}th question refused once",
        "parts": [asdict(part) | {"passed": part.passed} for part in parts],
    }
    seconds = time.monotonic() - began
    path = save_result(
        "load", command=command, seconds=seconds, passed=passed, summary=summary, details=details, folder=args.out
    )
    print(f"wrote {path}\n{summary}")
    return int(not passed)


def run_parts(args: argparse.Namespace) -> list[Part]:
    """Every part asked for, on the same turns, each after a reference of its own."""
    from eval.benchmarks.observing import choose_turns

    turns = choose_turns(args.turns)
    parts: list[Part] = []
    in_process: list[Manner] = [manner for manner in ("threads", "tasks") if manner in args.only]
    if in_process:
        with Observer(args.model, n_threads=args.threads) as observer:
            parts += measure(observer, turns, in_process, args.callers, 60 * args.minutes)
    if "server" in args.only:
        parts += measure_client(args, turns)
    return parts


def measure(
    observer: Observer,
    turns: Sequence[Exchange],
    manners: Sequence[Manner],
    n_callers: int,
    seconds: float,
    of: str = "",
) -> list[Part]:
    """The callers of each manner for its share of the seconds, after the reference: every turn alone."""
    alone = [observer.observe(turn) for turn in turns]
    print(f"{observer.name}: {len(alone)} turns asked alone", file=sys.stderr, flush=True)
    parts: list[Part] = []
    for manner in manners:
        share_s = seconds / len(manners)
        ledger = Ledger(alone, n_callers, capacity=n_callers + int(share_s * _MOST_PER_S))
        with MemorySampler() as memory:
            took_s = drive(manner, observer, turns, ledger, share_s)
        part = Part(manner, took_s, ledger.account(took_s), memory_use(memory.samples))
        print(describe(part), file=sys.stderr, flush=True)
        parts.append(part)
    return parts


def measure_client(args: argparse.Namespace, turns: Sequence[Exchange]) -> list[Part]:
    """The client of a server that has the model's answers by heart."""
    from observer.backends.opening import open_backend
    from tests.trust.load.server import MODEL, answering, record_answers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "answers.json")
        with open_backend(args.model, n_threads=args.threads) as backend:
            record_answers(backend, turns, path)
        with answering(path, UNAVAILABLE_EVERY) as host:
            os.environ["OLLAMA_HOST"] = host
            with Observer(f"ollama:{MODEL}") as observer:
                parts = measure(observer, turns, ("threads", "tasks"), args.callers, 60 * args.server_minutes)
    return [replace(part, name=f"server {part.name}") for part in parts]


def describe(part: Part) -> str:
    """One line for a terminal."""
    account, memory, latency = part.account, part.memory, part.account.latency
    waits = f"{latency.p50_ms:,.0f}/{latency.p99_ms:,.0f}/{latency.max_ms:,.0f} ms" if latency else "no answer"
    slope = "too short to tell" if memory.mb_per_min is None else f"{memory.mb_per_min:+.2f} MB/min"
    levels = f"{memory.start_mb:.0f} to {memory.end_mb:.0f} MB"
    return (
        f"{part.name}: {account.n_answered:,} answers ({account.requests_per_s:.1f} a second), {account.n_lost} lost, "
        f"{account.n_repeated} twice, {account.n_foreign} of another turn, {account.n_different} different, "
        f"{account.n_errors} errors; p50/p99/max {waits}; memory {levels}, {slope}"
    )


def summarize(parts: Sequence[Part], n_callers: int) -> str:
    """One sentence with the numbers of all parts."""
    accounts = [part.account for part in parts]

    def total(field: str) -> int:
        return sum(getattr(account, field) for account in accounts)

    slopes = [part.memory.mb_per_min for part in parts if part.memory.mb_per_min is not None]
    memory = f"steepest memory slope {max(slopes):+.2f} MB/min" if slopes else "too short for a memory slope"
    waits = ", ".join(f"{p.name} {p.account.latency.p99_ms:,.0f} ms" for p in parts if p.account.latency)
    took = format_duration(sum(part.seconds for part in parts))
    return (
        f"{n_callers} callers for {took}: {total('n_answered'):,} of {total('n_asked'):,} requests "
        f"answered, {total('n_lost')} lost, {total('n_repeated')} answered twice, {total('n_foreign')} with another "
        f"turn's answer, {total('n_different')} unlike their turn's alone, {total('n_errors')} errors; {memory}; "
        f"p99 {waits}."
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="outputs/nano", metavar="MODEL", help="FILE.gguf or a run's folder (default: %(default)s)")
    add("--callers", type=positive, default=64, metavar="N", help="default: %(default)s")
    add("--minutes", type=float, default=10.0, metavar="M", help="of threads and tasks (default: %(default)s)")
    add("--server-minutes", type=float, default=4.0, metavar="M", help="of the server's client (default: %(default)s)")
    add("--turns", type=positive, default=256, metavar="N", help="different turns asked about (default: %(default)s)")
    add("--only", type=_parts, default=PARTS, metavar="PART,…", help=f"some of {', '.join(PARTS)}")
    add("--threads", type=positive, metavar="N", help="threads of llama.cpp (default: all cores)")
    add("--out", type=Path, default=TRUST_FOLDER, metavar="DIR", help="default: %(default)s")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if min(args.minutes, args.server_minutes) <= 0:
        raise ObserverError("--minutes and --server-minutes: above 0 is expected; leave a part out with --only")
    return args


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    return parts


if __name__ == "__main__":
    restart_without_thread_caches()
    sys.exit(run_cli(main))
