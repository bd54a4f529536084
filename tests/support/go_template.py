"""The part of Go's text/template that our Modelfiles use."""

from __future__ import annotations

import re
from collections.abc import Sequence


def render_go_template(template: str, messages: Sequence[dict[str, str]]) -> str:
    """`range`, fields, `end`, and `{{-` / `-}}` trimming.

    `{{- ` takes away white space before the action and ` -}}` behind it; nothing else is touched.
    """
    parts = re.split(r"(\{\{(?:- )?.*?(?: -)?\}\})", template, flags=re.DOTALL)
    for place, part in enumerate(parts):
        if part.startswith("{{- "):
            parts[place - 1] = parts[place - 1].rstrip(" \t\r\n")
        if part.startswith("{{") and part.endswith(" -}}"):
            parts[place + 1] = parts[place + 1].lstrip(" \t\r\n")
    actions = [part.strip("{}").strip("-").strip() if part.startswith("{{") else None for part in parts]
    begin, end = actions.index("range .Messages"), actions.index("end")
    fields = {".Role": "role", ".Content": "content"}

    def body(message: dict[str, str]) -> str:
        inside = zip(actions[begin + 1 : end], parts[begin + 1 : end], strict=True)
        return "".join(part if action is None else message[fields[action]] for action, part in inside)

    assert not any(actions[:begin] + actions[end + 1 :])
    return "".join(parts[:begin]) + "".join(map(body, messages)) + "".join(parts[end + 1 :])
