"""What is in the text box, as exchanges: one conversation as text or messages, or JSON lines of several."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import ValidationError

from observer.errors import ObserverError, raise_all
from observer.files import parse_json
from observer.observation import Exchange
from observer.schema import describe_fault
from observer.turns.conversation import MARKER, Unusable, said_in_text
from observer.turns.inputs import Item, Reading, read_inputs

MAX_TEXT_CHARACTERS = 200_000
MAX_EXCHANGES = 50
MAX_EXCHANGE_CHARACTERS = 20_000
CONTEXT_TURNS = 2
"""How many turns before an exchange the model is shown: as many as in the rows it learns from."""


_OBJECT = re.compile(r'\{\s*"')


class Read(NamedTuple):
    """`opens`: no exchange of this conversation was read before it."""

    exchange: Exchange
    opens: bool


def read_conversation(text: str, now: datetime) -> list[Read]:
    """Every exchange, in order. Text that opens with no `USER:` or `ASSISTANT:` is one user message as it stands.

    What has no time of its own was said now, one exchange a millisecond after the other. Raises
    ObserverError naming every fault.
    """
    text = text.encode("utf-8", "replace").decode("utf-8").strip()  # lone surrogates
    if not text:
        raise ObserverError("nothing to observe; type a message, or paste a conversation")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ObserverError(f"{len(text):,} characters; this page takes {MAX_TEXT_CHARACTERS:,}, paste a part of them")
    inputs = read_inputs(_as_json_lines(text).encode(), "conversation", Reading(True, 10**9))
    faults = [f"{bad.place}: {bad.reason}" for bad in inputs.unreadable]
    if len(inputs.items) > MAX_EXCHANGES:
        faults.append(
            f"{len(inputs.items)} exchanges; this page takes {MAX_EXCHANGES} at a time, `observer observe` any"
        )
    found = []
    for number, item in enumerate(inputs.items):
        said_at = now + timedelta(milliseconds=number)
        try:
            found.append(Read(_exchange(item, said_at), " turn " not in item.place or item.place.endswith(" turn 1")))
        except ObserverError as error:
            faults.append(f"{item.place}: {error}")
    raise_all(faults)
    return found


def _as_json_lines(text: str) -> str:
    """Any of the forms as one JSON object a line."""
    if text[0] in "[{":
        try:
            value = parse_json(text)
        except ValueError:
            if _OBJECT.match(text):
                return text  # several lines of JSON, whose faults are told by line
        else:
            return json.dumps(value)
    if MARKER.match(text):
        try:
            lines = text.replace("\r\n", "\n").split("\n")
            turns = [said.turn for said in said_in_text(lines)]
        except Unusable as error:
            raise ObserverError(f"conversation: {error}") from None
        return json.dumps({"messages": [{"role": turn.role, "content": turn.content.strip()} for turn in turns]})
    return json.dumps({"user_message": text})


def _exchange(item: Item, said_at: datetime) -> Exchange:
    fields: dict[str, Any] = {name: item.fields[name] for name in item.fields if name in Exchange.model_fields}
    fields["context"] = fields.get("context", [])[-CONTEXT_TURNS:]
    try:
        exchange = Exchange.model_validate(fields | {"at": item.at})
    except ValidationError as error:
        raise ObserverError("; ".join(describe_fault(fault) for fault in error.errors())) from None
    n_characters = len(exchange.user_message) + len(exchange.assistant_message)
    n_characters += sum(len(turn.content) for turn in exchange.context)
    if n_characters > MAX_EXCHANGE_CHARACTERS:
        raise ObserverError(f"{n_characters:,} characters; this page takes {MAX_EXCHANGE_CHARACTERS:,}, shorten it")
    given = item.exchange + (exchange.at.isoformat() if exchange.at else "")
    id = f"demo@{hashlib.sha256(given.encode()).hexdigest()[:16]}"
    return exchange.model_copy(update={"at": exchange.at or said_at, "id": id})
