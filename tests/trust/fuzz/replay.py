"""Try an input without the fuzzer; one that fails becomes the smallest that fails in the same way.

    python -m tests.trust.fuzz.replay TARGET FILE

In a process of its own, since an input may crash it or never come back. Exit code 0 when the input does no harm.
"""

from __future__ import annotations

import faulthandler
import sys
import traceback
from pathlib import Path

from observer.console.run import run_cli
from observer.errors import ObserverError
from tests.trust.fuzz.libfuzzer import SHRINKING_S, error_of, smallest
from tests.trust.fuzz.targets import TARGETS, Target

NEVER_BACK_S = 120 + SHRINKING_S


def main() -> int:
    name, file = sys.argv[1:]
    if name not in TARGETS:
        raise ObserverError(f"{name}: no such target; known: {', '.join(TARGETS)}")
    faulthandler.enable()
    faulthandler.dump_traceback_later(NEVER_BACK_S, exit=True)
    return replay(TARGETS[name], Path(file))


def replay(target: Target, path: Path) -> int:
    target.warm_up()
    data = path.read_bytes()
    error = error_of(target.run, data)
    if error is None:
        return 0
    traceback.print_exception(error)
    path.write_bytes(smallest(target.run, data))
    return 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
