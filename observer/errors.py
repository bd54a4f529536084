"""The one exception a user can mend: place, what was found, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from observer.telemetry import switch_off


class ObserverError(Exception):
    """A fault in what the user gave us; its text is the whole message, without a traceback."""


class RowsError(ObserverError):
    """Some rows of a call can have no answer, the others could; `faults` has the reason by the row's index."""

    def __init__(self, faults: Mapping[int, str]) -> None:
        super().__init__(_listed([f"row {index}: {fault}" for index, fault in sorted(faults.items())], 50))
        self.faults = dict(faults)


def raise_all(faults: Sequence[str], limit: int = 50) -> None:
    """Raise one ObserverError listing every fault (a line each), or return when there are none."""
    if faults:
        raise ObserverError(_listed(faults, limit))


def _listed(faults: Sequence[str], limit: int) -> str:
    shown = list(faults[:limit])
    if len(faults) > limit:
        shown.append(f"… and {len(faults) - limit} more faults")
    return "\n".join(shown)


def run_cli(main: Callable[[], int | None], debug: bool | None = None) -> int:
    """Run `main` without telemetry, turning ObserverError into its text on stderr and exit code 1.

    Ctrl-C exits 130. With `--debug` among the arguments the traceback is shown.
    """
    switch_off()
    debug = "--debug" in sys.argv if debug is None else debug
    try:
        return main() or 0
    except ObserverError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command resumes where this one stopped", file=sys.stderr)
        return 130
