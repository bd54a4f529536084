"""What cog writes of the config and of requests into the pages that name these functions. `make docs` runs both.

python -m docs.reference         writes docs/requests/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docs.markdown import cell, table, type_name, yaml_value
from observer.backends.request_bodies import llama_server_request, ollama_request, vllm_request
from observer.config import Config, load_config
from observer.files import write_text
from observer.paths import PROJECT_ROOT
from observer.prompts import Task, render_exchange

EXCHANGE = render_exchange("I left Siemens, I'm at Bosch now.", "Congratulations!")
"""What every request body asks about; the example of the README."""
REQUESTS = Path("docs/requests")


def config_keys() -> str:
    """Every key by section."""
    default = Config()
    parts = []
    for section in Config.model_fields:
        values = getattr(default, section)
        rows = [_config_row(name, field, getattr(values, name)) for name, field in type(values).model_fields.items()]
        parts.append(f"## {section}\n\n" + table(["key", "type", "default", ""], rows))
    return "\n\n".join(parts)


def _config_row(name: str, field: Any, value: Any) -> Sequence[str]:
    kind, empty, _ = type_name(field.annotation).partition(", or empty")
    found = {
        sign: getattr(item, bound) for bound, sign in _BOUNDS.items() for item in field.metadata if hasattr(item, bound)
    }
    bounds = ", ".join(f"{sign} {limit}" for sign, limit in found.items())
    return f"`{name}`", f"{kind} {bounds}".strip() + empty, f"`{yaml_value(value)}`", cell(field.description)


_BOUNDS = {"gt": ">", "ge": "≥", "lt": "\\<", "le": "≤"}


def shipped_configs() -> str:
    """What each changes."""
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


def request(name: str) -> str:
    """A body as JSON: a key a line; what a key holds stays on its line."""
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in request_bodies()[name].items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def request_block(name: str) -> str:
    return f"```json\n{request(name)}```"


if __name__ == "__main__":
    for name in request_bodies():
        write_text(PROJECT_ROOT / REQUESTS / f"{name}.json", request(name))
