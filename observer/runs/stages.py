"""Running the stages of a recipe through its manifest, with a line for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from observer.console.stopping import check_asked
from observer.runs.manifest import Manifest


class Stages:
    """Runs stages through one manifest. Results go to stdout."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def run(
        self, name: str, inputs: dict[str, Any], outputs: Sequence[Path], work: Callable[[], dict[str, Any] | None]
    ) -> bool:
        """Call `work` unless it was done on the same inputs; say and return which."""
        check_asked()
        started = time.monotonic()
        did_run = self.manifest.run(name, inputs, outputs, work)
        what = f"done in {time.monotonic() - started:.1f} s" if did_run else "done before on the same inputs, skipped"
        print(f"{name}: {what}", flush=True)
        return did_run
