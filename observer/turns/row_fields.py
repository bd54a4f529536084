"""The fields of one row of a data file, by one rule for every command.

null is absent; ids are text; system and tool turns are left out of the context; what we know nothing about is counted.
Wrong types are left for the schema to name.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from observer.errors import printable
from observer.schema import ExtractionRow, GradingRow
from observer.turns.conversation import Unusable, is_conversation, text_of, turns_of_messages

CONVERSATION_KEYS = ("messages", "conversations", "conversation")
"""Where a row keeps a conversation: OpenAI's name, ShareGPT's, and another."""
SPLIT_KEYS = frozenset({"prompt", "completion"})
"""Fields of rows that are ready to be trained on; see `observer.data.dataset`."""
GOLD_FIELDS = frozenset({"label", "reasoning", "confidence", "entities", "relationships"})
_KNOWN = frozenset(GradingRow.model_fields) | frozenset(ExtractionRow.model_fields) | {"at"}
_CHAT_MARKS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|\[INST\]|(?m:^(?:USER|Human|### ?\w+): ?)|<start_of_turn>"
)
_IDS = ("id", "family", "frame")
_USERS_WORDS = ("instruction", "prompt", "question", "query", "input", "text", "user", "human", "request", "message")
_PARTS_OF_ROWS = {"context", "prompt", "input", "completion", "output", "chosen", "rejected"}
"""Lists of messages that are a part of a conversation alone."""
_REPLIES = ("output", "response", "answer", "completion", "reply", "assistant", "bot", "chosen")


@dataclass(frozen=True)
class RowFields:
    """`fields` are those of a raw row, `unused` the names of the others."""

    fields: dict[str, Any]
    at: Any
    unused: tuple[str, ...]


def conversation_in(value: Any) -> tuple[Any, str] | None:
    """The messages of a value that is, or holds, one conversation, and what they are called."""
    if is_conversation(value):
        return value, "messages"
    if not isinstance(value, dict):
        return None
    if isinstance(tree := value.get("mapping"), dict):
        return _branch(tree, value.get("current_node")), "mapping"
    keys = [key for key in CONVERSATION_KEYS if value.get(key) is not None]
    keys = keys or [key for key, field in value.items() if key not in _PARTS_OF_ROWS and is_conversation(field)]
    return (value[keys[0]], keys[0]) if keys and (len(keys) == 1 or keys[0] in CONVERSATION_KEYS) else None


def _branch(tree: dict[str, Any], end: Any) -> list[Any]:
    """The messages of ChatGPT's export from the first to the last shown.

    Questions that were asked anew are no part, nor is what goes to a tool, such as a note for ChatGPT's memory.
    """
    nodes = {key: node for key, node in tree.items() if isinstance(node, dict)}
    messages: list[Any] = []
    key = end if isinstance(end, str) and end in nodes else next(reversed(nodes), None)
    while isinstance(key, str) and key in nodes and len(messages) < len(nodes):
        messages.append(nodes[key].get("message"))
        key = nodes[key].get("parent")
    return [one for one in messages[::-1] if not isinstance(one, dict) or one.get("recipient") in (None, "all")]


def row_fields(value: Mapping[str, Any]) -> RowFields:
    """The fields of a raw row. Raises Unusable for a context that is none, and for a row without `user_message`."""
    given = {key: field for key, field in value.items() if not is_absent(field)}
    if "user_message" not in given:
        raise Unusable(explain_unknown(given))
    fields = {key: field for key, field in given.items() if key in _KNOWN and key != "at"}
    for key in _IDS:
        if key in fields:
            fields[key] = as_id(fields[key], key)
    if _is_column(fields["user_message"]) and _is_column(fields.get("assistant_message", [""] * 2)):
        raise Unusable(
            "user_message: a column, not a row; pandas writes rows with to_json(orient='records', lines=True)"
        )
    for key in ("user_message", "assistant_message"):
        if isinstance(fields.get(key), list | dict):
            fields[key] = text_of(fields[key], key) or ""
    if isinstance(fields.get("context"), list):
        fields["context"] = [turn.model_dump() for turn in turns_of_messages(fields["context"], "context")]
    return RowFields(fields, given.get("at"), tuple(sorted(given.keys() - _KNOWN)))


def _is_column(value: Any) -> bool:
    """Whether it holds the texts of several rows; a message's parts are objects, or one text."""
    if isinstance(value, dict):
        return bool(value) and all(key.isdigit() for key in value)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)


def explain_unknown(value: Mapping[str, Any]) -> str:
    """Why a value is no row, and what to rename where that can be told."""
    found = ", ".join(value)[:80]
    if "role" in value and "content" in value:
        return 'one message; a conversation goes in one line, {"messages": [{"role": "user", "content": "…"}, …]}'
    said = next((key for key in _USERS_WORDS if isinstance(value.get(key), str)), None)
    reply = next((key for key in _REPLIES if key != said and isinstance(value.get(key), str)), None)
    if said and _CHAT_MARKS.search(value[said]):
        return f"`{said}` holds a whole conversation; write its turns as `messages`, or as USER: and ASSISTANT: lines"
    if said:
        rename = f"rename `{said}` to user_message" + (f" and `{reply}` to assistant_message" if reply else "")
        return f"neither `user_message` nor `messages`, found the fields {found}; {rename}"
    return f"neither `user_message` nor `messages`, found the fields {found or '(none)'}"


def unused_fields(counts: Counter[str]) -> str:
    """`fields not used: mood (3)`; empty where there are none."""
    names = printable(", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items())))
    return f"fields not used: {names if len(names) <= 300 else names[:300] + ' …'}" if names else ""


def is_absent(value: Any) -> bool:
    """null, and NaN, which is how tables write it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_id(value: Any, key: str = "id") -> str:
    """Numbers as text: 1 and 1.0, which pandas makes of it, are one id. Raises Unusable for what is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"{key}: text or a number is expected, found {str(value)[:60]!r}")
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)
