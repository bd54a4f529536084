"""Light modules start without heavy packages. Who may import whom is checked by `make lint`: pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

import pytest

from observer.paths import PROJECT_ROOT

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "unsloth", "llama_cpp", "sklearn", "matplotlib", "ray"}


@pytest.mark.parametrize(
    "module",
    [
        "observer",
        "observer.cli",
        "observer.config",
        "observer.data.check",
        "observer.doctor",
        "observer.data.synth.generate",
    ],
)
def test_importing_a_light_module_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert done.stdout.split() == []
