"""A module imports only from lower layers, and the light layers never touch the heavy packages."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from observer.paths import PROJECT_ROOT

LAYERS = [
    {"errors", "console"},
    {"files", "paths", "schema"},
    {"config", "observation", "prompts"},
    {"data", "turns"},
    {"labeling", "memory", "runs"},
    {"weights", "engine", "training", "export", "ollama", "backends"},
    {"client"},
    {"__init__"},
    {"doctor", "observe"},
    {"demo"},
    {"cli"},
]
LAYER_OF = {unit: number for number, units in enumerate(LAYERS) for unit in units}
LIGHT = {"__init__"}.union(*LAYERS[:5])
SHARED_LAYER = LAYERS[5]
"""Its parts use pieces of one another (a checkpoint's shape, the tokenizer's pattern), without cycles of modules."""
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "unsloth", "llama_cpp", "sklearn", "matplotlib", "ray"}

PACKAGE = PROJECT_ROOT / "observer"
MODULES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT_ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path) for path in MODULES}


def unit_of(module: str) -> str:
    """`observer.training.sft` -> `training`: the part of the package that has a layer."""
    return module.partition(".")[2].partition(".")[0] or "__init__"


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & NAMES) or {node.module}
    return found


def own_imports_of(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.partition(".")[0] == "observer"}


def test_every_module_has_a_layer() -> None:
    assert {unit_of(name) for name in NAMES} <= LAYER_OF.keys()


@each_module
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    own = unit_of(module_name(path))
    siblings = next((layer for layer in (LAYERS[0], SHARED_LAYER) if own in layer), {own})
    used = {unit_of(name) for name in own_imports_of(path)} - siblings
    assert not {unit for unit in used if LAYER_OF[unit] >= LAYER_OF[own]}


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = {module_name(path): own_imports_of(path) for path in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@each_module
def test_the_light_layers_import_nothing_heavy_and_the_package_never_imports_eval(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imports_of(path)}
    assert not roots & {"eval", "train_sft", "tests"}
    if unit_of(module_name(path)) in LIGHT:
        assert not roots & (HEAVY - {"sklearn"})


@pytest.mark.parametrize(
    "module",
    ["observer.cli", "observer.config", "observer.data.check", "observer.doctor", "observer.data.synth.generate"],
)
def test_importing_a_light_module_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert done.stdout.split() == []
