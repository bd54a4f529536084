"""Running a command: its exit code, and one line for what a user can fix."""

from __future__ import annotations

import sys
from collections.abc import Callable

from observer.console.stopping import exit_code, listening, was_asked
from observer.console.telemetry import switch_off
from observer.errors import ObserverError, printable


def run_cli(main: Callable[[], int | None], debug: bool | None = None) -> int:
    """Run `main` without telemetry, turning ObserverError into its text on stderr and exit code 1.

    Ctrl-C exits 130, SIGTERM 143, each with one line. With `--debug` among the arguments the traceback is shown.
    """
    switch_off()
    debug = "--debug" in sys.argv if debug is None else debug
    with listening():
        try:
            code = main() or 0
            return exit_code(KeyboardInterrupt()) if code == 130 else code
        except KeyboardInterrupt as stop:
            return _say_interrupted(stop)
        except Exception as error:
            if was_asked():  # an import cut by a signal may call itself anything
                return _say_interrupted(error)
            if debug or not isinstance(error, ObserverError):
                raise
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 1


def _say_interrupted(stop: BaseException) -> int:
    code = exit_code(stop)
    by = " by SIGTERM" if code == 143 else ""
    print(f"\ninterrupted{by}: what was finished is kept, the same command does the rest", file=sys.stderr)
    return code
