"""Conversations as turns: from OpenAI `messages` and from `USER:` / `ASSISTANT:` text, and the exchanges in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from observer.schema import Turn

MARKER = re.compile(r"(USER|ASSISTANT|SYSTEM)[ \t]*:[ \t]*", re.IGNORECASE)
"""What opens a turn of a text file, at the very start of a line."""

LEFT_OUT = frozenset({"system", "developer", "tool", "function"})


class Unusable(ValueError):
    """Why one input row cannot be labelled; the row is set aside, the others go on."""


@dataclass(frozen=True)
class Exchange:
    """A user turn with the reply after it (or none) and everything before it. `number` counts user turns from 1."""

    number: int
    user_message: str
    assistant_message: str
    context: list[Turn]


def exchanges(turns: Sequence[Turn], every_turn: bool) -> Iterator[Exchange]:
    """The last exchange, or one for every user turn as it is asked for."""
    starts = [position for position, turn in enumerate(turns) if turn.role == "user"]
    if not starts:
        raise Unusable("no user turn")
    said, position = list[Turn](), 0
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(turns)], strict=True), 1):
        said += [turn for turn in turns[position:start] if turn.content.strip()]
        position = start
        if every_turn or number == len(starts):
            reply = "\n".join(turn.content for turn in turns[start + 1 : end])
            yield Exchange(number, turns[start].content, reply, list(said))


def turns_of_messages(messages: Any) -> list[Turn]:
    """User and assistant turns of an OpenAI `messages` list; of a content in parts, the text parts."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Unusable(f"messages: a list of objects is expected, found {str(messages)[:60]!r}")
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role")
        if isinstance(role, str) and role in LEFT_OUT:
            continue
        if role not in ("user", "assistant"):
            raise Unusable(f"messages.{number}.role: unknown value {role!r}; allowed: user, assistant, system, tool")
        content = _text(message.get("content"), f"messages.{number}.content")
        if content is not None:  # an assistant that only calls a tool says nothing
            turns.append(Turn(role=role, content=content))
    return turns


def turns_of_text(lines: Sequence[str]) -> list[Turn]:
    """Turns of marked text; lines without a marker go on with the turn before (as `render_exchange` indents them)."""
    parts: list[tuple[str, list[str]]] = []
    for line in lines:
        if marker := MARKER.match(line):
            parts.append((marker.group(1).lower(), [line[marker.end() :]]))
        else:
            parts[-1][1].append(line.removeprefix("  "))
    return turns_of_messages([{"role": role, "content": "\n".join(texts)} for role, texts in parts])


def _text(content: Any, place: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable(f"{place}: text is expected, found {str(content)[:60]!r}")
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))
