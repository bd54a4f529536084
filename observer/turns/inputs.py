"""Reads what is to be labelled: raw rows, OpenAI `messages` rows and marked text, mixed freely in one file.

Every row becomes an `Item`, or an `Unreadable` that says why not; nothing is dropped in silence.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from observer.errors import ObserverError
from observer.files import explain_os_error, parse_json
from observer.prompts import render_exchange, render_turn
from observer.schema import GradingRow, Turn, parse_row
from observer.turns.conversation import MARKER, Unusable, exchanges, turns_of_messages, turns_of_text

STDIN = "-"
GOLD_FIELDS = frozenset({"label", "reasoning", "confidence", "entities", "relationships"})
KEPT_FIELDS = frozenset(GradingRow.model_fields) - GOLD_FIELDS - {"source"}
"""The fields of a raw row that go on into the labelled row."""


@dataclass(frozen=True)
class Item:
    """One exchange to label. `fields` are those of a raw row without gold; `gold` and `at` are what the row had,
    unchecked. `rendered` is the exchange where that is known: turns of a long conversation are rendered once."""

    place: str
    fields: dict[str, Any]
    gold: dict[str, Any] = field(default_factory=dict)
    at: Any = None
    rendered: str = ""

    @cached_property
    def exchange(self) -> str:
        """The exchange as every prompt shows it."""
        if self.rendered:
            return self.rendered
        context = [Turn.model_validate(turn) for turn in self.fields.get("context", [])]
        return render_exchange(self.fields["user_message"], self.fields["assistant_message"], context)


@dataclass(frozen=True)
class Unreadable:
    place: str
    reason: str
    text: str


@dataclass
class Inputs:
    """All of one input, in its order. `unused_fields` counts the fields that we know nothing about."""

    items: list[Item] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    unused_fields: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Block:
    """One JSON line, or the lines of one conversation in text; `fault` says why it is neither."""

    line: int
    lines: list[str]
    value: dict[str, Any] | None = None
    fault: str = ""


def read_bytes(path: str) -> bytes:
    """The input, from a file or from standard input (`-`)."""
    if path == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ObserverError(explain_os_error(error, Path(path))) from error


def read_inputs(data: bytes, path: str, *, every_turn: bool = False, max_characters: int = 20_000) -> Inputs:
    """Read every row of `data`; `path` names it in places (`chats.jsonl:12`)."""
    inputs = Inputs()
    lines = data.split(b"\n")
    for row in iter_inputs(lines, path, inputs.unused_fields, every_turn=every_turn, max_characters=max_characters):
        if isinstance(row, Item):
            inputs.items.append(row)
        else:
            inputs.unreadable.append(row)
    return inputs


def iter_inputs(
    lines: Iterable[bytes], path: str, unused_fields: Counter[str], *, every_turn: bool, max_characters: int
) -> Iterator[Item | Unreadable]:
    """Every row of the lines as soon as it is whole; a JSON line is, text is at its blank line."""
    name = "stdin" if path == STDIN else path
    for block in split_blocks(lines):
        try:
            for item in _items_of(block, name, every_turn, unused_fields):
                reason = _fault(item, max_characters)
                yield Unreadable(item.place, reason, item.fields["user_message"][:500]) if reason else item
        except Unusable as error:
            yield Unreadable(f"{name}:{block.line}", str(error), "\n".join(block.lines)[:500])


def split_blocks(lines: Iterable[bytes]) -> Iterator[Block]:
    """JSON lines and conversations, told apart line by line; a blank line or `---` ends a conversation."""
    text: list[str] = []
    start, fault = 0, ""
    for number, raw in enumerate(chain(lines, [b""]), 1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        line, bad_bytes = _decode(raw.removesuffix(b"\n"), number)
        value = None if bad_bytes else _parse_object(line)
        is_end = not line.strip() or line.strip() == "---"
        is_row = value is not None and bool(value.keys() & {"user_message", "messages"})
        if text and not is_end and not is_row:
            text.append(line)
            fault = fault or bad_bytes
            continue
        if text:
            yield Block(start, text, fault=fault)
            text = []
        if is_end:
            continue
        if MARKER.match(line):
            text, start, fault = [line], number, bad_bytes
        else:
            expected = "one JSON object a line, or USER: and ASSISTANT: lines are expected"
            yield Block(number, [line], value, bad_bytes or ("" if value is not None else f"not JSON; {expected}"))


def load_json(text: str) -> Any:
    """Parse JSON into values that can be written as UTF-8 again. Raises ValueError, also when nested too deeply."""
    try:
        value = parse_json(text)
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))  # lone surrogates
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _decode(raw: bytes, number: int) -> tuple[str, str]:
    line = raw.removesuffix(b"\r")
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError:
        return line.decode("utf-8", "replace"), f"not UTF-8 text on line {number}; save the file as UTF-8"


def _parse_object(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = load_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _items_of(block: Block, name: str, every_turn: bool, unused: Counter[str]) -> Iterator[Item]:
    place, base = f"{name}:{block.line}", f"{Path(name).name}:{block.line}"
    if block.fault:
        raise Unusable(block.fault)
    value = block.value
    if value is not None and "user_message" in value:
        unused.update(value.keys() - KEPT_FIELDS - GOLD_FIELDS - {"source"})
        yield _raw_item(value, place, base)
        return
    if value is not None and "messages" not in value:
        raise Unusable(f"neither `user_message` nor `messages`, found the fields {', '.join(value)[:80]}")
    turns = turns_of_text(block.lines) if value is None else turns_of_messages(value["messages"])
    if value is not None:
        unused.update(value.keys() - {"messages", "id"})
        base = str(value.get("id") or base)
    at = value.get("at") if value else None
    earlier = [turn for turn in turns if turn.content.strip()]  # every context is a beginning of it
    dumped = [turn.model_dump() for turn in earlier]
    rendered = [render_turn(turn.role, turn.content) for turn in earlier]
    for exchange in exchanges(turns, every_turn):
        last = render_exchange(exchange.user_message, exchange.assistant_message)
        n_earlier = len(exchange.context)
        fields = {
            "user_message": exchange.user_message,
            "assistant_message": exchange.assistant_message,
            "context": dumped[:n_earlier],
            "id": f"{base}#{exchange.number}" if every_turn else base,
        }
        where = f"{place} turn {exchange.number}" if every_turn else place
        yield Item(where, fields, at=at, rendered="\n".join([*rendered[:n_earlier], last]))


def _raw_item(value: dict[str, Any], place: str, base: str) -> Item:
    fields = {key: value[key] for key in value if key in KEPT_FIELDS and value[key] is not None}
    fields = {"assistant_message": ""} | fields | {"id": str(fields.get("id", base))}
    _, faults = parse_row(fields | {"label": "DISCARD"})  # checks the fields that both kinds of row share
    if faults:
        raise Unusable("; ".join(faults))
    return Item(place, fields, {key: value[key] for key in value if key in GOLD_FIELDS}, value.get("at"))


def _fault(item: Item, max_characters: int) -> str:
    if not item.fields["user_message"].strip():
        return "empty user turn"
    if len(item.exchange) > max_characters:
        return f"{len(item.exchange):,} characters; at most {max_characters:,} are sent (--max-characters)"
    return ""
