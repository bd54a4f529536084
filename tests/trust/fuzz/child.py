"""One target under atheris, in a process of its own: libFuzzer drives, our modules report which lines were reached.

    python -m tests.trust.fuzz.child TARGET SEEDS [FLAGS AND FOLDERS OF LIBFUZZER]

The target's seeds are written to the folder SEEDS, which libFuzzer then reads as any other
(https://llvm.org/docs/LibFuzzer.html#options).
"""

from __future__ import annotations

import contextlib
import io
import random
import sys
from pathlib import Path

SLOWER = 3.0
"""How much longer than CPU_SECONDS an input may take here, where every line is counted."""


def main() -> None:
    import atheris  # pyright: ignore[reportMissingImports]

    name, folder, *flags = sys.argv[1:]
    instrumented = atheris.instrument_imports(include=["observer", "eval"])  # pyright: ignore
    with contextlib.redirect_stderr(io.StringIO()), instrumented:  # atheris names every module that it instruments
        from tests.trust.fuzz.targets import TARGETS
    from tests.trust.fuzz.bounds import CPU_SECONDS, bounds
    from tests.trust.fuzz.mutations import mutated

    target = TARGETS[name]
    target.warm_up()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.start()):
        Path(folder, f"{number:03}").write_bytes(seed)

    def try_one(data: bytes) -> None:
        with bounds(CPU_SECONDS * SLOWER):
            target.run(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, len(data) + 64)[:max_size]
        return mutated(bytes(data), rng, max_size)

    # libFuzzer starts this command again, through a shell, when it merges.
    command = f"{sys.executable} -m tests.trust.fuzz.child {name} {folder}"
    atheris.Setup([command, *flags], try_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
