"""The generated pages say what the code says, and everything that they need to say is said in the code."""

from __future__ import annotations

import re

from cogapp import Cog

from docs.parsers import command_of, observer_parsers, script_parser, script_paths
from docs.reference import REQUESTS, request, request_bodies
from observer.config import Config
from observer.paths import PROJECT_ROOT


def test_the_committed_pages_are_those_that_the_code_makes() -> None:
    pages = [*(PROJECT_ROOT / "docs" / "reference").iterdir(), PROJECT_ROOT / "docs" / "serving.md"]
    assert all("[[[cog" in page.read_text(encoding="utf-8") for page in pages), "a page that nothing makes"
    assert Cog().main(["cog", "--check", "--diff", *map(str, pages)]) == 0, "write them again: make docs"


def test_the_committed_requests_are_those_that_the_code_makes() -> None:
    folder = PROJECT_ROOT / REQUESTS
    assert {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {
        name: request(name) for name in request_bodies()
    }, "write them again: make docs"


def test_every_key_of_the_config_says_what_it_does() -> None:
    config = Config()
    sections = {name: type(getattr(config, name)) for name in Config.model_fields}
    silent = [f"{s}.{key}" for s, kind in sections.items() for key, f in kind.model_fields.items() if not f.description]
    assert not silent


def test_every_command_is_on_the_page() -> None:
    found = re.findall(r"^## (.+)$", (PROJECT_ROOT / "docs/reference/cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found == [*(parser.prog for parser in observer_parsers()), *map(command_of, script_paths())]
    assert {"observer observe", "observer memory show", "observer data split", "observer export"} <= set(found)


def test_a_scripts_parser_is_the_one_that_it_parses_with() -> None:
    parsed = script_parser(script_paths()[0]).parse_args(["--config", "configs/nano.yaml", "--dry-run"])
    assert (str(parsed.config), parsed.dry_run) == ("configs/nano.yaml", True)
