"""The nightly set: faults injected, input fuzzed, attacks tried, load held, runs repeated; one page with the verdict.

    make trust                                      all of it: about two and a half hours on two cores
    python -m tests.trust.nightly --only load,reproduce      some of it
    python -m tests.trust.nightly --page-only                the page again, from the results that are there

A part writes outputs/trust/PART.json and outputs/trust/logs/PART.log. One that passed before with the same arguments
and the same code is not run again (--fresh runs it); one that fails or takes too long does not keep the others from
running. The page, docs/benchmarks/trust.md, names machine, date, commit and command of each part, and what was not run.
Exit code 0 only when every part asked for passed. docs/trust.md explains the parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from observer.console.arguments import positive
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import write_text
from tests.trust.page import render
from tests.trust.parts import Part, is_current, nightly, run_all
from tests.trust.result import PARTS, TRUST_FOLDER, load_results

PAGE = Path("docs/benchmarks/trust.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = parse_arguments(arguments)
    chosen = [
        part for part in nightly(args.model, args.config) if part.name in args.only and part.name not in args.skip
    ]
    before = load_results()
    to_run = [] if args.page_only else [part for part in chosen if args.fresh or not is_current(part, before)]
    for part in chosen:
        if not args.page_only and part not in to_run:
            say(f"{part.name}: passed before with the same arguments and code, kept")
    unfinished: dict[str, str] = {}
    try:
        unfinished = run_parts(to_run, args.jobs)
    finally:  # Ctrl-C too: what was found until then is written down
        results = load_results()
        write_text(args.page, render(results, unfinished))
        say(f"wrote {args.page}")
    print(args.page.read_text(encoding="utf-8").rstrip().rpartition("\n")[2])
    return int(any(name not in results or not results[name].passed or name in unfinished for name in names(chosen)))


def run_parts(parts: Sequence[Part], jobs: int) -> dict[str, str]:
    """Run them; of each without a new result, why. An old result of such a part is removed: it is not of this code."""
    if not parts:
        return {}
    for part in parts:
        (TRUST_FOLDER / f"{part.name}.json").unlink(missing_ok=True)
    ended = run_all(parts, jobs, TRUST_FOLDER / "logs", say)
    written = load_results()
    return {name: why for name, why in ended.items() if name not in written}


def names(parts: Sequence[Part]) -> list[str]:
    return [part.name for part in parts]


def say(line: str) -> None:
    """Progress, on stderr."""
    print(f"[{datetime.now():%H:%M:%S}] {line}", file=sys.stderr, flush=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", type=_names, default=PARTS, metavar="PART,…", help=f"some of {', '.join(PARTS)}")
    add("--skip", type=_names, default=(), metavar="PART,…", help="leave these out")
    add("--fresh", action="store_true", help="run parts again that passed before")
    add("--page-only", action="store_true", help="run nothing, write the page")
    add("--jobs", type=positive, default=1, metavar="N", help="parts side by side, but for those that measure rates or "
        "memory: these run alone (default: %(default)s)")  # fmt: skip
    add("--model", default="outputs/nano", metavar="MODEL", help="a run's folder or FILE.gguf (default: %(default)s)")
    add("--config", type=Path, default=Path("configs/nano.yaml"), metavar="FILE.yaml", help="to repeat (%(default)s)")
    add("--page", type=Path, default=PAGE, metavar="FILE.md", help="default: %(default)s")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if not args.page_only and not Path(args.model).exists():
        raise ObserverError(f"{args.model}: no such model; make it with `make train`, or name another with --model")
    return args


def _names(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if unknown := sorted(set(found) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    return found


if __name__ == "__main__":
    sys.exit(run_cli(main))
