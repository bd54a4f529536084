"""Write what the code says of itself: docs/reference/, docs/requests/ and the request bodies in docs/serving.md.

    python docs/make_reference.py

tests/test_reference.py compares the files with what this writes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from docs.markdown import cell, table, type_name, yaml_value
from docs.parsers import observer_parsers, render_parser, script_parser, script_paths
from docs.schema_page import schema_page
from observer.backends.request_bodies import llama_server_request, ollama_request, vllm_request
from observer.config import Config, load_config
from observer.files import read_text, write_text
from observer.paths import PROJECT_ROOT
from observer.prompts import Task, render_exchange

COMMAND = "python docs/make_reference.py"
NOTE = f"<!-- Written by `{COMMAND}`; edit the code that it describes. -->\n"
EXCHANGE = render_exchange("I left Siemens, I'm at Bosch now.", "Congratulations!")
"""What every request body asks about; the example of the README."""
SERVING = Path("docs/serving.md")
_BODY = re.compile(r"(<!-- body: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def reference_files() -> dict[Path, str]:
    """Every generated file with its text, relative to the project."""
    files = {
        Path("docs/reference/schema.md"): f"{NOTE}{schema_page()}",
        Path("docs/reference/config.md"): f"{NOTE}{config_page()}",
        Path("docs/reference/cli.md"): f"{NOTE}{cli_page()}",
    }
    bodies = {f"docs/requests/{name}.json": to_json(body) for name, body in request_bodies().items()}
    files |= {Path(name): text for name, text in bodies.items()}
    return files | {SERVING: serving_page(read_text(PROJECT_ROOT / SERVING), bodies)}


def cli_page() -> str:
    parts = [
        "# Commands\n\nWhat `--help` says, of `observer` and of every script. Exit codes: 0 done, 1 failed with one "
        "line on stderr, 2 wrong usage, 130 stopped by Ctrl-C. Results go to stdout, progress to stderr.",
        *(render_parser(parser, said) for parser, said in observer_parsers()),
        *(render_parser(script_parser(script), "") for script in script_paths()),
    ]
    return "\n\n".join(parts) + "\n"


def config_page() -> str:
    """Every key by section, then what each shipped config changes."""
    default = Config()
    parts = [
        "# Config\n\nOne YAML file for a run: `python train_sft.py --config FILE.yaml`. What it leaves out has the "
        "default; `--set section.key=value` overrides both. Unknown keys are refused with their line. Paths are "
        "relative to the folder you run from. The values a run used are in `outputs/<run>/config.yaml`."
    ]
    for section in Config.model_fields:
        values = getattr(default, section)
        rows = [_config_row(name, field, getattr(values, name)) for name, field in type(values).model_fields.items()]
        parts.append(f"## {section}\n\n" + table(["key", "type", "default", ""], rows))
    parts.append(f"## The shipped configs\n\nWhat they set; all else is the default.\n\n{_shipped_configs()}")
    return "\n\n".join(parts) + "\n"


def _config_row(name: str, field: Any, value: Any) -> Sequence[str]:
    kind, empty, _ = type_name(field.annotation).partition(", or empty")
    found = {
        sign: getattr(item, bound) for bound, sign in _BOUNDS.items() for item in field.metadata if hasattr(item, bound)
    }
    bounds = ", ".join(f"{sign} {limit}" for sign, limit in found.items())
    return f"`{name}`", f"{kind} {bounds}".strip() + empty, f"`{yaml_value(value)}`", cell(field.description)


_BOUNDS = {"gt": ">", "ge": "≥", "lt": "\\<", "le": "≤"}


def _shipped_configs() -> str:
    paths = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))
    default = Config().model_dump(mode="json")
    rows = []
    for path in paths:
        values = load_config(path).model_dump(mode="json")
        changed = [
            f"{section}.{key}={yaml_value(value)}"
            for section, keys in values.items()
            for key, value in keys.items()
            if value != default[section][key]
        ]
        rows.append([f"`configs/{path.name}`", ", ".join(f"`{change}`" for change in changed)])
    return table(["file", "sets"], rows)


def request_bodies() -> dict[str, dict[str, Any]]:
    """One body for each server and task, about the same exchange."""
    bodies = {}
    for task in Task:
        bodies[f"ollama-{task}"] = ollama_request("observer", task, EXCHANGE)
        bodies[f"llama-server-{task}"] = llama_server_request(task, EXCHANGE)
        bodies[f"vllm-{task}"] = vllm_request("observer", task, EXCHANGE)
    return bodies


def to_json(body: dict[str, Any]) -> str:
    """A key a line; what a key holds stays on its line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in body.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def serving_page(page: str, bodies: dict[str, str]) -> str:
    """The page with the bodies between its marks."""

    def fill(mark: re.Match[str]) -> str:
        return f"{mark[1]}```json\n{bodies[f'docs/requests/{mark[2]}.json']}```\n{mark[3]}"

    return _BODY.sub(fill, page)


def main() -> int:
    for path, text in reference_files().items():
        write_text(PROJECT_ROOT / path, text)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
