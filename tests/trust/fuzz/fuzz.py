"""Fuzz every parser of outside input for a while: no crash, no hang, no unbounded memory, and what each promises.

    python -m tests.trust.fuzz.fuzz --minutes 60
    python -m tests.trust.fuzz.fuzz --replay TARGET FILE

atheris guides the inputs by the lines of ours that they reach; each target has a process and an equal share of the
time. Inputs that reached something new are kept in outputs/fuzz/ and started from the next time, so a fuzzing that was
stopped loses nothing. Every fault is kept as the smallest input found, with its traceback. An input of at most 64 KiB
may take 5 s of processor time and 512 MB.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from observer.console.durations import format_duration
from observer.console.run import run_cli
from observer.errors import ObserverError
from tests.trust.result import TRUST_FOLDER, save_result

if TYPE_CHECKING:
    from tests.trust.fuzz.campaign import Count

CORPUS = Path("outputs/fuzz")
SECONDS_BETWEEN_LINES = 15.0
NEVER_BACK_S = 90


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    from tests.trust.fuzz.targets import targets_named

    if args.replay:
        return replay_here(args.replay[0], Path(args.replay[1]))
    if importlib.util.find_spec("atheris") is None:
        raise ObserverError("atheris is not installed: pip install -c constraints.txt -e '.[trust]'")
    names = [target.name for target in targets_named(args.targets)]
    counts: list[Count] = []
    start = time.monotonic()
    try:
        fuzz(names, args.minutes * 60, args.corpus, counts)
    finally:
        passed = report(counts, time.monotonic() - start, names, args)
    return 0 if passed else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="for all targets together; default: %(default)s")
    parser.add_argument("--targets", nargs="*", default=[], metavar="NAME", help="only these; default: all")
    parser.add_argument("--corpus", type=Path, default=CORPUS, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=TRUST_FOLDER, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"), help="try one input, without atheris")
    return parser


def fuzz(names: Sequence[str], seconds: float, folder: Path, counts: list[Count]) -> None:
    """Each target for its share of what is left."""
    from tests.trust.fuzz.campaign import fuzz_target, replay

    end = time.monotonic() + seconds
    for place, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - place)
        fuzz_target(name, share, folder, Line(f"{place + 1}/{len(names)}"), counts)
        for finding in counts[-1].findings:
            finding.replays = finding.replays or replay(name, Path(finding.file)) is not None
        print(_told(counts[-1]), flush=True)


class Line:
    """The state of a target on stderr: one line that changes on a terminal, else one now and then."""

    def __init__(self, place: str) -> None:
        self.place, self.start = place, time.monotonic()
        self.shown_at = self.start

    def __call__(self, count: Count, left_s: float) -> None:
        now, is_live = time.monotonic(), sys.stderr.isatty()
        if now - self.shown_at < (0.5 if is_live else SECONDS_BETWEEN_LINES):
            return
        self.shown_at = now
        rate = count.executions / max(now - self.start, 1e-9)
        line = (
            f"{self.place} {count.target}: {count.executions:,} executions, {rate:,.0f} a second, "
            f"{count.features:,} features, {len(count.findings)} findings, {format_duration(left_s)} left"
        )
        print(f"\r{line:<110}" if is_live else line, end="" if is_live else "\n", file=sys.stderr, flush=True)


def report(counts: Sequence[Count], seconds: float, names: Sequence[str], args: argparse.Namespace) -> bool:
    """Save the result and print what was found; return whether every target ran and none failed."""
    findings = [finding for count in counts for finding in count.findings]
    real = [finding for finding in findings if finding.replays]
    executions = sum(count.executions for count in counts)
    untried = [name for name in names if name not in {count.target for count in counts if count.executions}]
    summary = (
        f"{executions:,} inputs to {len(counts)} parsers in {format_duration(seconds)}: {len(real)} faults"
        + (f", {len(findings) - len(real)} more only under the fuzzer" if len(findings) > len(real) else "")
        + (f"; not tried: {', '.join(untried)}" if untried else "")
    )
    command = f"python -m tests.trust.fuzz.fuzz --minutes {args.minutes:g}"
    command += f" --targets {' '.join(args.targets)}" if args.targets else ""
    details = {"targets": [dataclasses.asdict(count) for count in counts], "untried": untried}
    passed = not real and not untried
    path = save_result(
        "fuzz", command=command, seconds=seconds, passed=passed, summary=summary, details=details, folder=args.out
    )
    for finding in findings:
        print(f"{finding.target}: {finding.signature}\n  {finding.command}")
    print(f"{summary}\nwrote {path}")
    return passed


def replay_here(name: str, file: Path) -> int:
    """Try one input in this process; what never comes back ends it with its traceback."""
    from observer.files import explain_os_error
    from tests.trust.fuzz.bounds import fault_of
    from tests.trust.fuzz.targets import targets_named

    (target,) = targets_named([name])
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ObserverError(explain_os_error(error, file)) from error
    target.warm_up()
    faulthandler.dump_traceback_later(NEVER_BACK_S, exit=True, file=sys.__stderr__ or sys.stderr)
    fault = fault_of(target.run, data)
    faulthandler.cancel_dump_traceback_later()
    print(f"{fault.signature}\n{fault.text}" if fault else f"{file}: no fault")
    return 1 if fault else 0


def _told(count: Count) -> str:
    rate = count.executions / max(count.seconds, 1e-9)
    return (
        f"{count.target}: {count.executions:,} executions in {format_duration(count.seconds)} ({rate:,.0f} a second), "
        f"{count.corpus:,} inputs kept, {len(count.findings)} findings"
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
