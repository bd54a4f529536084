"""Conversations as turns, from the messages of chat logs and from `USER:` / `ASSISTANT:` text, and their exchanges.

Read are OpenAI `messages`, ShareGPT's `conversations` and their kin: who speaks stands in `role` or `from`, under any
of the usual names, and what is said in `content`, `value` or `text`, as text or in parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from observer.observation import Exchange, read_time
from observer.schema import Turn

MARKER = re.compile(r"(USER|ASSISTANT|SYSTEM)[ \t]*:[ \t]*", re.IGNORECASE)
"""What opens a turn of a text file, at the very start of a line."""

USERS = frozenset({"user", "human", "prompter", "customer"})
ASSISTANTS = frozenset("assistant gpt chatgpt model bot chatbot ai llm bing bard claude gemini copilot".split())
LEFT_OUT = frozenset(
    "system developer tool tools tool_call tool_calls tool_response tool_result function function_call"
    " function_response function_call_output reasoning observation ipython environment".split()
)
_SPEAKER_KEYS = ("role", "from", "speaker", "sender", "author")
_SAID_KEYS = ("content", "value", "text", "parts", "message", "utterance", "blocks", "refusal")
_INNER_KEYS = ("data", "kwargs", "message")
"""Where LangChain's dumps and others keep the message itself."""
TIME_KEYS = (
    "at", "timestamp", "created_at", "createdAt", "create_time", "created", "time", "datetime", "date", "ts", "sent_at",
)  # fmt: skip
"""Where logs keep when something was said."""
_PART_KEYS = ("text", "refusal", "content", "value", "parts")
_TEXT_PARTS = frozenset(
    {None, "text", "input_text", "output_text", "refusal", "multimodal_text", "audio_transcription"}
)
_OF_TOOLS = re.compile(r"tool|function|_call(_output)?$", re.IGNORECASE)
"""Types of parts, of some providers keys of parts, that call a tool or bring what it answered."""
_OTHER_PARTS = frozenset(
    "image image_url input_image audio input_audio audio_url video video_url file input_file document thinking"
    " redacted_thinking reasoning thoughts reasoning_recap code execution_output citable_code_output search_result"
    " sonic_webpage tether_quote tether_browsing_display system_error".split()
)


class Unusable(ValueError):
    """Why one input row cannot be used; the row is set aside, the others go on."""


@dataclass(frozen=True)
class Said:
    """A turn, and when it was said where that is told."""

    turn: Turn
    at: datetime | None = None


def exchanges(said: Sequence[Said], every_turn: bool) -> Iterator[tuple[int, Exchange]]:
    """The last exchange, or one for every user turn as it is asked for: a user turn with the reply after it (or none)
    and everything before it, and the number of the turn, from 1."""
    starts = [position for position, one in enumerate(said) if one.turn.role == "user"]
    if not starts:
        raise Unusable("no user turn")
    earlier, position = list[Turn](), 0
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(said)], strict=True), 1):
        earlier += [one.turn for one in said[position:start] if one.turn.content.strip()]
        position = start
        if every_turn or number == len(starts):
            reply = "\n".join(one.turn.content for one in said[start + 1 : end] if one.turn.content.strip())
            user = said[start]
            yield number, Exchange(user_message=user.turn.content, assistant_message=reply, context=earlier, at=user.at)


def is_conversation(value: Any) -> bool:
    """Whether it is a list of messages, and no list of rows."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and not one.keys().isdisjoint(_SPEAKER_KEYS) for one in value)
    )


def said_in(messages: Any, key: str = "messages", time_key: str = "") -> list[Said]:
    """User and assistant turns of a list of messages, which `key` names, each with its time (first in `time_key`).

    System and tool turns are left out, and of a content in parts all but the text. Raises Unusable.
    """
    if isinstance(messages, list):
        messages = [message for message in messages if message is not None]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Unusable(f"{key}: a list of objects is expected, found {str(messages)[:60]!r}")
    said = []
    for number, message in enumerate(map(_unwrapped, messages)):
        role = _role(message, f"{key}.{number}")
        content = role and _content(message, f"{key}.{number}")
        if role and content is not None:  # an assistant that only calls a tool says nothing
            said.append(Said(Turn(role=role, content=content), _time(message, time_key)))
    return said


def turns_of_messages(messages: Any, key: str = "messages") -> list[Turn]:
    """The turns of `said_in`."""
    return [said.turn for said in said_in(messages, key)]


def said_in_text(lines: Sequence[str]) -> list[Said]:
    """Turns of marked text; lines without a marker go on with the turn before (as `render_exchange` indents them)."""
    parts: list[tuple[str, list[str]]] = []
    for line in lines:
        if marker := MARKER.match(line):
            parts.append((marker.group(1).lower(), [line[marker.end() :]]))
        else:
            parts[-1][1].append(line.removeprefix("  "))
    return said_in([{"role": role, "content": "\n".join(texts)} for role, texts in parts])


def text_of(content: Any, place: str) -> str | None:
    """The text of a message's content: text, a part or parts of it; None where there is none. Raises Unusable."""
    if content is None or isinstance(content, str):
        return content
    parts = [part for part in content if part is not None] if isinstance(content, list) else [content]
    if not all(isinstance(part, str | dict) for part in parts):
        raise Unusable(f"{place}: text is expected, found {str(content)[:60]!r}")
    try:
        texts = [_text_of_part(part, f"{place}.{number}") for number, part in enumerate(parts)]
    except RecursionError:
        raise Unusable(f"{place[:60]}: nested too deeply") from None
    return "\n".join(text for text in texts if text is not None)


def _text_of_part(part: str | dict[str, Any], place: str) -> str | None:
    """The text of one part, None of an image or a call; text that we do not know how to read is no text to drop."""
    if isinstance(part, str):
        return part
    kind = _kind(part)
    text = next((part[key] for key in _PART_KEYS if part.get(key) is not None), None)
    if isinstance(text, dict):
        text = text.get("value", text.get("text"))
    if isinstance(text, list) and kind in _TEXT_PARTS:
        text = text_of(text, place)
    if kind in _TEXT_PARTS and isinstance(text, str):
        return text
    if text is None or kind in _OTHER_PARTS or _is_of_tools(part):
        return None
    raise Unusable(f'{place}: found a part of type {kind!r}; text is read from {{"type": "text", "text": "…"}}')


def _kind(part: Mapping[str, Any]) -> str | None:
    return next((str(part[key]) for key in ("type", "content_type") if part.get(key) is not None), None)


def _unwrapped(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message within the message, where the outer one says nothing."""
    inner = next((message[key] for key in _INNER_KEYS if isinstance(message.get(key), dict)), {})
    return {**message, **inner} if message.keys().isdisjoint(_SAID_KEYS[:4]) else message


def _role(message: Mapping[str, Any], place: str) -> Literal["user", "assistant"] | None:
    """None for what is left out."""
    key = next((key for key in (*_SPEAKER_KEYS, "type") if message.get(key) is not None), "role")
    given = message.get(key)
    name = given.get("role") if isinstance(given, dict) else given
    role = name.strip().casefold() if isinstance(name, str) else None
    if role in USERS:
        return "user"
    if role in ASSISTANTS:
        return "assistant"
    if role not in LEFT_OUT:
        allowed = ", ".join(sorted(USERS | ASSISTANTS | {"system", "tool"}))
        raise Unusable(f"{place}.{key}: unknown value {given!r:.60}; allowed: {allowed}")
    return None


def _content(message: Mapping[str, Any], place: str) -> str | None:
    key = next((key for key in _SAID_KEYS if message.get(key) is not None), "")
    if not key:
        if message.keys().isdisjoint(_SAID_KEYS) and not any(map(_OF_TOOLS.search, message)):
            raise Unusable(f"{place}: no text found, of the fields {', '.join(message)[:80]}; content is expected")
        return None
    content = message[key]
    parts = content if isinstance(content, list) else [content]
    return None if parts and all(map(_is_of_tools, parts)) else text_of(content, f"{place}.{key}")


def _is_of_tools(part: Any) -> bool:
    """Whether it calls a tool, or brings what one answered, which comes in the user's name from some."""
    if not isinstance(part, dict):
        return False
    kind = _kind(part)
    return any(map(_OF_TOOLS.search, part if kind is None else [kind]))


def _time(message: Mapping[str, Any], time_key: str) -> datetime | None:
    """When it was said, from the first key that holds a time."""
    for key in (time_key, *TIME_KEYS):
        try:
            if at := read_time(message.get(key)):
                return at
        except ValueError:
            continue
    return None
