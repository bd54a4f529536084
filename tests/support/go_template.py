"""The part of Go's text/template that our Modelfiles use."""

from __future__ import annotations

import re
from collections.abc import Sequence


def render_go_template(template: str, messages: Sequence[dict[str, str]]) -> str:
    """`range`, fields, `if eq FIELD "text"` within it, `end`, and `{{-` / `-}}` trimming.

    `{{- ` takes away white space before the action and ` -}}` behind it; nothing else is touched.
    """
    parts = re.split(r"(\{\{(?:- )?.*?(?: -)?\}\})", template, flags=re.DOTALL)
    for place, part in enumerate(parts):
        if part.startswith("{{- "):
            parts[place - 1] = parts[place - 1].rstrip(" \t\r\n")
        if part.startswith("{{") and part.endswith(" -}}"):
            parts[place + 1] = parts[place + 1].lstrip(" \t\r\n")
    actions = [part.strip("{}").strip("-").strip() if part.startswith("{{") else None for part in parts]
    begin = actions.index("range .Messages")
    end = max(place for place, action in enumerate(actions) if action == "end")
    fields = {".Role": "role", ".Content": "content"}

    def body(message: dict[str, str]) -> str:
        text, is_shown = "", True
        for action, part in zip(actions[begin + 1 : end], parts[begin + 1 : end], strict=True):
            if action and (condition := re.fullmatch(r'if eq (\.\w+) "(.*)"', action)):
                is_shown = message[fields[condition[1]]] == condition[2]
            elif action == "end":
                is_shown = True
            elif is_shown:
                text += part if action is None else message[fields[action]]
        return text

    assert not any(actions[:begin] + actions[end + 1 :])
    return "".join(parts[:begin]) + "".join(map(body, messages)) + "".join(parts[end + 1 :])
