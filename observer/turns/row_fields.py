"""The fields of one row of a data file, by one rule for every command.

null is absent; ids are text; system and tool turns are left out of the context; what we know nothing about is counted.
Wrong types are left for the schema to name.
"""

from __future__ import annotations

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
_IDS = ("id", "family", "frame")
_USERS_WORDS = ("instruction", "prompt", "question", "query", "input", "text", "user", "human", "request", "message")
_REPLIES = ("output", "response", "answer", "completion", "reply", "assistant", "bot", "chosen")


@dataclass(frozen=True)
class RowFields:
    """`fields` are those of a raw row, `unused` the names of the others."""

    fields: dict[str, Any]
    at: Any
    unused: tuple[str, ...]


def conversation_in(value: Any) -> tuple[Any, str] | None:
    """The messages of a value that is, or holds, a conversation, and what they are called."""
    if is_conversation(value):
        return value, "messages"
    keys = [key for key in CONVERSATION_KEYS if value.get(key) is not None] if isinstance(value, dict) else []
    return (value[keys[0]], keys[0]) if keys else None


def row_fields(value: Mapping[str, Any]) -> RowFields:
    """The fields of a raw row. Raises Unusable for a context that is none, and for a row without `user_message`."""
    given = {key: field for key, field in value.items() if field is not None}
    if "user_message" not in given:
        raise Unusable(explain_unknown(given))
    fields = {key: field for key, field in given.items() if key in _KNOWN and key != "at"}
    for key in _IDS:
        if key in fields:
            fields[key] = as_id(fields[key])
    for key in ("user_message", "assistant_message"):
        if isinstance(fields.get(key), list | dict):
            fields[key] = text_of(fields[key], key) or ""
    if isinstance(fields.get("context"), list):
        fields["context"] = [turn.model_dump() for turn in turns_of_messages(fields["context"], "context")]
    return RowFields(fields, given.get("at"), tuple(sorted(given.keys() - _KNOWN)))


def explain_unknown(value: Mapping[str, Any]) -> str:
    """Why a value is no row, and what to rename where that can be told."""
    found = ", ".join(value)[:80]
    said = next((key for key in _USERS_WORDS if isinstance(value.get(key), str)), None)
    reply = next((key for key in _REPLIES if key != said and isinstance(value.get(key), str)), None)
    if said:
        rename = f"rename `{said}` to user_message" + (f" and `{reply}` to assistant_message" if reply else "")
        return f"neither `user_message` nor `messages`, found the fields {found}; {rename}"
    return f"neither `user_message` nor `messages`, found the fields {found or '(none)'}"


def unused_fields(counts: Counter[str]) -> str:
    """`fields not used: mood (3)`; empty where there are none."""
    names = printable(", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items())))
    return f"fields not used: {names if len(names) <= 300 else names[:300] + ' …'}" if names else ""


def as_id(value: Any) -> Any:
    """Numbers as text: 1 and 1.0, which pandas makes of it, are one id. What is no number is left as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)
