"""The generated pages say what the code says, and everything that they need to say is said in the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.make_reference import COMMAND, reference_files
from docs.parsers import command_of, observer_parsers, script_parser, script_paths
from observer.config import Config
from observer.paths import PROJECT_ROOT


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return {path.as_posix(): text for path, text in reference_files().items()}


def test_the_committed_pages_are_those_that_the_code_makes(files: dict[str, str]) -> None:
    stale = [name for name, text in files.items() if _committed(name) != text]
    assert not stale, f"out of date: {', '.join(stale)}; write them again: {COMMAND} (or make docs)"


def _committed(name: str) -> str:
    path = PROJECT_ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_no_page_is_left_that_nothing_makes(files: dict[str, str]) -> None:
    there = {f"docs/{folder}/{path.name}" for folder in ("reference", "requests") for path in _files_of(folder)}
    assert there == {name for name in files if name.count("/") == 2}


def _files_of(folder: str) -> list[Path]:
    return list((PROJECT_ROOT / "docs" / folder).iterdir())


def test_every_key_of_the_config_says_what_it_does() -> None:
    config = Config()
    sections = {name: type(getattr(config, name)) for name in Config.model_fields}
    silent = [f"{s}.{key}" for s, kind in sections.items() for key, f in kind.model_fields.items() if not f.description]
    assert not silent


def test_every_command_is_on_the_page(files: dict[str, str]) -> None:
    page = files["docs/reference/cli.md"]
    assert {"observer observe", "observer memory show", "observer data split", "observer export"} <= {
        parser.prog for parser, _ in observer_parsers()
    }
    for parser, _ in observer_parsers():
        assert f"\n## {parser.prog}\n" in page
    for script in script_paths():
        assert f"\n## {command_of(script)}\n" in page


def test_a_scripts_parser_is_the_one_that_it_parses_with() -> None:
    parsed = script_parser(script_paths()[0]).parse_args(["--config", "configs/nano.yaml", "--dry-run"])
    assert (str(parsed.config), parsed.dry_run) == ("configs/nano.yaml", True)


def test_finding_all_parsers_loads_no_model_library() -> None:
    code = (
        "import sys; from docs.parsers import script_parser, script_paths; "
        "[script_parser(path) for path in script_paths()]; "
        "print(*sorted({'torch', 'transformers', 'trl', 'sklearn', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert done.stdout.split() == []
