"""One target under atheris, in a process of its own: libFuzzer drives, our modules report which lines were reached.

Started by `fuzz`. Faults that Python sees are kept and do not end the process; a hang or a crash of C code does, and
libFuzzer leaves the input behind.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.trust.fuzz.bounds import Fault
    from tests.trust.fuzz.targets import Target

SLOWER = 3.0
"""How much longer than CPU_SECONDS an input may take here, where every line is counted."""
SHRINKING_S = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--known", default="", help="signatures that are told already, as JSON")
    args, flags = parser.parse_known_args()
    import atheris  # pyright: ignore[reportMissingImports]

    instrumented = atheris.instrument_imports(include=["observer", "eval"])  # pyright: ignore
    with _silence(), instrumented:
        from tests.trust.fuzz.targets import TARGETS
    target = TARGETS[args.target]
    finder = Finder(target, args.findings, set(json.loads(args.known or "[]")))
    target.warm_up()
    seeds = target.start()
    flags.append(write_seeds(seeds, args.findings.with_name("seeds")))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        from tests.trust.fuzz.mutations import mutated

        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, len(data) + 64)[:max_size]
        return mutated(bytes(data), rng, max_size, seeds)

    atheris.Setup([sys.argv[0], *flags], finder.try_one, custom_mutator=mutate)
    atheris.Fuzz()


def write_seeds(seeds: Sequence[bytes], folder: Path) -> str:
    """A second folder of inputs for libFuzzer to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number:03}").write_bytes(seed)
    return str(folder)


class Finder:
    """Tries inputs and keeps the smallest found of each new fault: `SIGNATURE.input` beside its traceback."""

    def __init__(self, target: Target, folder: Path, known: set[str]) -> None:
        self.target, self.folder, self.known = target, folder, known
        folder.mkdir(parents=True, exist_ok=True)

    def try_one(self, data: bytes) -> None:
        fault = self._fault_of(data)
        if fault and fault.signature not in self.known:
            self.known.add(fault.signature)
            self._keep(self._smallest(data, fault), fault)

    def _fault_of(self, data: bytes) -> Fault | None:
        from tests.trust.fuzz.bounds import CPU_SECONDS, fault_of

        return fault_of(self.target.run, data, CPU_SECONDS * SLOWER)

    def _smallest(self, data: bytes, fault: Fault) -> bytes:
        from tests.trust.fuzz.bounds import smaller

        end = time.monotonic() + SHRINKING_S

        def is_same(shorter: bytes) -> bool:
            if time.monotonic() > end or fault.kind == "TooSlow":
                return False
            found = self._fault_of(shorter)
            return found is not None and found.signature == fault.signature

        return smaller(data, is_same)

    def _keep(self, data: bytes, fault: Fault) -> None:
        import hashlib

        stem = hashlib.sha256(fault.signature.encode()).hexdigest()[:12]
        path = self.folder / f"{stem}.input"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{fault.signature}\n{fault.text}", encoding="utf-8", errors="replace")
        print("\nFINDING " + json.dumps({"signature": fault.signature, "file": path.name}), file=sys.stderr, flush=True)


def _silence() -> Any:
    """atheris names every module that it instruments."""
    import contextlib
    import io

    return contextlib.redirect_stderr(io.StringIO())


if __name__ == "__main__":
    main()
