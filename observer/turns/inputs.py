"""Reads what is to be labelled or observed: raw rows, conversations and marked text, mixed freely in one file.

Every row becomes an `Item`, or an `Unreadable` that says why not; nothing is dropped in silence.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from observer.errors import ObserverError
from observer.files import explain_os_error, parse_json
from observer.prompts import render_exchange, render_turn
from observer.schema import GradingRow, Turn, parse_row
from observer.turns.conversation import MARKER, TIME_KEYS, Said, Unusable, exchanges, said_in, said_in_text
from observer.turns.file_formats import Line, lines_of
from observer.turns.row_fields import GOLD_FIELDS, as_id, conversation_in, explain_unknown, is_absent, row_fields

STDIN = "-"
KEPT_FIELDS = frozenset(GradingRow.model_fields) - GOLD_FIELDS - {"source"}
"""The fields of a raw row that go on into the labelled row."""


@dataclass(frozen=True)
class Reading:
    """How a file is read. `at_field` is where a row keeps its time, besides `at`; `counts_context`: an exchange is
    longer than `max_characters` with its context or without."""

    every_turn: bool = False
    max_characters: int = 20_000
    at_field: str = ""
    counts_context: bool = True


@dataclass(frozen=True)
class Item:
    """One exchange to label. `fields` are those of a raw row without gold; `gold` and `at` are what the row had,
    unchecked. `rendered` is the exchange where that is known: turns of a long conversation are rendered once.
    `time_field` is where a row without a time of its own seems to have one."""

    place: str
    fields: dict[str, Any]
    gold: dict[str, Any] = field(default_factory=dict)
    at: Any = None
    rendered: str = ""
    time_field: str = ""

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
    """One JSON value, or the lines of one conversation in text; `fault` says why it is neither."""

    number: str
    lines: list[str]
    value: Any = None
    fault: str = ""


def read_bytes(path: str) -> bytes:
    """The input, from a file or from standard input (`-`)."""
    if path == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ObserverError(explain_os_error(error, Path(path))) from error


def read_inputs(data: bytes, path: str, reading: Reading = Reading()) -> Inputs:
    """Read every row of `data`; `path` names it in places (`chats.jsonl:12`)."""
    inputs = Inputs()
    for row in iter_inputs(io.BytesIO(data), path, inputs.unused_fields, reading):
        if isinstance(row, Item):
            inputs.items.append(row)
        else:
            inputs.unreadable.append(row)
    return inputs


def iter_inputs(
    stream: BinaryIO, path: str, unused_fields: Counter[str], reading: Reading
) -> Iterator[Item | Unreadable]:
    """Every row of the file as soon as it is whole; a JSON line is, text is at its blank line.

    Raises ObserverError for a file that is none of lines, an array or a table.
    """
    name = "stdin" if path == STDIN else path
    for block in split_blocks(lines_of(stream, name)):
        place = f"{name}:{block.number}"
        try:
            for item in _items_of(block, place, f"{Path(name).name}:{block.number}", reading, unused_fields):
                yield checked(item, reading)
        except Unusable as error:
            yield Unreadable(place, str(error), "\n".join(block.lines)[:500])


def split_blocks(lines: Iterator[Line]) -> Iterator[Block]:
    """JSON lines and conversations, told apart line by line; a blank line or `---` ends a conversation."""
    text: list[str] = []
    start, fault = "", ""
    for number, raw in chain(lines, [Line("", b"")]):
        line, bad_bytes = _decode(raw, number)
        value = None if bad_bytes else _parse_row(line)
        is_end = not line.strip() or line.strip() == "---"
        is_row = isinstance(value, dict) and ("user_message" in value or conversation_in(value) is not None)
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


def _decode(raw: bytes, number: str) -> tuple[str, str]:
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), f"not UTF-8 text on line {number}; save the file as UTF-8"


def _parse_row(line: str) -> Any:
    """A JSON object or list, else None."""
    if not line.lstrip().startswith(("{", "[")):
        return None
    try:
        return parse_json(line)
    except ValueError:
        return None


def _items_of(block: Block, place: str, base: str, reading: Reading, unused: Counter[str]) -> Iterator[Item]:
    if block.fault:
        raise Unusable(block.fault)
    value, time_key = block.value, reading.at_field
    if value is None:
        yield from _items_of_turns(said_in_text(block.lines), place, base, reading.every_turn, None)
        return
    row = value if isinstance(value, dict) else {}
    row = {key: field for key, field in row.items() if not is_absent(field)}
    at = row.get(time_key, row.get("at"))
    if "user_message" in row:
        yield _raw_item(row, place, base, unused, at, time_key)
    elif found := conversation_in(value):
        messages, key = found
        unused.update(row.keys() - {key, "id", "at", time_key})
        base = as_id(row["id"]) if "id" in row else base
        said = said_in(messages, key, time_key)
        yield from _items_of_turns(said, place, base, reading.every_turn, at, _time_field(row, at))
    else:
        raise Unusable(
            explain_unknown(row) if row else f"found {str(value)[:60]!r}; one JSON object a line is expected"
        )


def _items_of_turns(
    said: list[Said], place: str, base: str, every_turn: bool, at: Any, time_field: str = ""
) -> Iterator[Item]:
    earlier = [one.turn for one in said if one.turn.content.strip()]  # every context is a beginning of it
    dumped = [turn.model_dump() for turn in earlier]
    rendered = [render_turn(turn.role, turn.content) for turn in earlier]
    for number, exchange in exchanges(said, every_turn):
        last = render_exchange(exchange.user_message, exchange.assistant_message)
        n_earlier = len(exchange.context)
        yield Item(
            place=f"{place} turn {number}" if every_turn else place,
            fields={
                "user_message": exchange.user_message,
                "assistant_message": exchange.assistant_message,
                "context": dumped[:n_earlier],
                "id": f"{base}#{number}" if every_turn else base,
            },
            at=exchange.at or at,
            rendered="\n".join([*rendered[:n_earlier], last]),
            time_field="" if exchange.at else time_field,
        )


def _raw_item(row: dict[str, Any], place: str, base: str, unused: Counter[str], at: Any, time_key: str) -> Item:
    found = row_fields(row)
    unused.update(name for name in found.unused if name != time_key)
    fields = {"assistant_message": "", "id": base} | {k: v for k, v in found.fields.items() if k in KEPT_FIELDS}
    _, faults = parse_row(fields | {"label": "DISCARD"})  # checks the fields that both kinds of row share
    if faults:
        raise Unusable("; ".join(faults))
    gold = {key: field for key, field in found.fields.items() if key in GOLD_FIELDS}
    return Item(place, fields, gold, at, time_field=_time_field(row, at))


def _time_field(row: dict[str, Any], at: Any) -> str:
    """Where a row without a time seems to have one."""
    return next((key for key in TIME_KEYS if row.get(key) is not None), "") if at is None else ""


def checked(item: Item, reading: Reading) -> Item | Unreadable:
    """The item, unless it is empty or too long."""
    user, assistant = item.fields["user_message"], item.fields["assistant_message"]
    n_characters = len(item.exchange if reading.counts_context else render_exchange(user, assistant))
    if not user.strip():
        reason = "empty user turn"
    elif n_characters > reading.max_characters:
        reason = f"{n_characters:,} characters; at most {reading.max_characters:,} are sent (--max-characters)"
    else:
        return item
    return Unreadable(item.place, reason, user[:500])
