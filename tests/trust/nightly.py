"""The nightly set: faults injected, input fuzzed, attacks tried, load held, runs repeated; one page with the verdict.

    make trust                                      all of it: about two and a half hours on two cores
    python -m tests.trust.nightly --only load,reproduce      some of it
    python -m tests.trust.nightly --page-only                the page again, from the results that are there

The tests are those of pytest's marker `nightly`. Results are JUnit files in outputs/trust/, the page is
docs/benchmarks/trust.md. What passed before with the same settings and code is not run again. Exit code 0 only when
everything passed. docs/trust.md explains the parts.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from observer.console.arguments import positive
from observer.console.run import run_cli
from observer.files import write_text
from tests.trust.conftest import Settings, add_options
from tests.trust.page import render
from tests.trust.results import PARTS, TRUST_FOLDER, load_results

PAGE = Path("docs/benchmarks/trust.md")
NO_TESTS = 5
"""pytest's exit code when all is deselected."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    from observer.engine.llama_model import usable_cores

    args = parse_arguments(arguments)
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in asdict(Settings())]
    options += ["--fresh"] * args.fresh + (["-k", args.k] if args.k else [])
    # Threads that wait for one another at every step, as torch's do, take many times as long on a core that is shared.
    shared = {"OMP_NUM_THREADS": str(max(1, usable_cores() // args.jobs))} if args.jobs > 1 else {}
    codes = [0]
    try:
        if not args.page_only:
            jobs = ["--numprocesses", str(args.jobs)] if args.jobs > 1 else []
            codes.append(run("nightly and not alone", args.only, [*jobs, *options], shared))
            # glibc's caches of freed blocks grow with threads, which looks like a leak and hides one (docs/trust.md).
            codes.append(
                run("nightly and alone", args.only, options, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"})
            )
    finally:  # Ctrl-C too: what was found until then is written down
        write_text(args.page, page := render(load_results()))
    print(f"wrote {args.page}\n{page.rstrip().rpartition(chr(10))[2]}")
    return max(codes)


def run(marks: str, parts: Sequence[str], options: Sequence[str], environment: Mapping[str, str]) -> int:
    """pytest on the files of these parts; returns its exit code. Ctrl-C lets it write down what it has."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}.xml"
    command = [sys.executable, "-m", "pytest", "-m", marks, f"--junitxml={TRUST_FOLDER / name}", *options]
    command += [path for part in parts for path in PARTS[part][1:]]
    # A session of its own: a terminal's Ctrl-C reaches it once, through us, as SIGTERM does.
    with subprocess.Popen(command, env={**environment, **os.environ}, start_new_session=True) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    return 0 if code == NO_TESTS else code


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", type=_parts, default=tuple(PARTS), metavar="PART,…", help=f"some of {', '.join(PARTS)}")
    add("-k", metavar="EXPRESSION", help="only tests whose names match, as pytest's -k")
    add_options(add)
    add("--page-only", action="store_true", help="run nothing, write the page")
    add("--jobs", type=positive, default=1, metavar="N", help="tests side by side, but for those that measure rates or "
        "memory: these run alone (default: %(default)s)")  # fmt: skip
    add("--page", type=Path, default=PAGE, metavar="FILE.md", help="default: %(default)s")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _parts(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if unknown := sorted(set(found) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    return found


if __name__ == "__main__":
    sys.exit(run_cli(main))
