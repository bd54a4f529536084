"""Commands and light modules start without heavy packages. Who may import whom is checked by `make lint`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from observer.cli import main
from observer.paths import PROJECT_ROOT

Captured = pytest.CaptureFixture[str]

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "unsloth", "llama_cpp", "sklearn", "matplotlib", "ray"}
LIGHT = ("cli", "config", "data.check", "data.synth.generate", "doctor")
SCRIPTS = "from docs.parsers import script_parser, script_paths; [script_parser(path) for path in script_paths()]"


def loaded_by(*statements: str) -> set[str]:
    """The packages outside the standard library that these load in a process of their own."""
    tries = [f"try:\n    {one}\nexcept SystemExit as end:\n    assert not end.code\n" for one in statements]
    names = "{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)"
    code = f"import sys\n{''.join(tries)}print()\nprint(*{names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("statements", "heavy"),
    [
        (["import observer"], HEAVY | {"pydantic", "httpx", "dateparser"}),
        (["from observer import Observer, Exchange, Observation"], HEAVY | {"httpx", "dateparser"}),
        ([f"import observer.{name}" for name in LIGHT], HEAVY),
        (["import observer.ollama.modelfile"], HEAVY | {"gguf"}),
        ([f"from eval.{name} import main; main(['--help'])" for name in ("compare", "evaluate")], HEAVY | {"numpy"}),
        ([SCRIPTS], HEAVY - {"llama_cpp"}),
    ],
)
def test_what_is_light_loads_no_heavy_package(statements: list[str], heavy: set[str]) -> None:
    assert loaded_by(*statements) & heavy == set()


def test_help_loads_nothing_but_the_standard_library_and_small_files_of_ours() -> None:
    commands = ["", "grade", "extract", "observe", "memory", "memory show"]
    helps = [f"from observer.cli import main; main([*{command.split()!r}, '--help'])" for command in commands]
    train = "runpy.run_path('train_sft.py', run_name='__main__')"
    helps.append(f"import runpy; sys.argv = ['train_sft.py', '--help']; {train}")
    loaded = {name for name in loaded_by(*helps) if not name.startswith(("_", "sitecustomize", "distutils"))}
    assert loaded == {"observer"}


@pytest.mark.parametrize(
    ("package", "arguments"), [("mcp", ["mcp", "--memory", "me.sqlite"]), ("gradio", ["demo", "--port", "0"])]
)
def test_without_its_package_a_command_says_how_to_get_it(
    package: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(arguments) == 1
    assert f"pip install -e '.[{arguments[0]}]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
