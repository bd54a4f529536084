"""Fuzz targets for text: what people say, what models and servers answer, times.

A target takes any bytes and raises only when something is wrong; ObserverError is how our parsers say no.
Inputs of several parts are parted as tests/support/hostile.txt is, by lines of `%%`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from observer.errors import ObserverError
from observer.paths import NANO_BASE, PROJECT_ROOT
from observer.prompts import clean, render_exchange
from observer.schema import Temporal, Turn
from observer.turns.accept import to_exchange
from observer.turns.before_model import prepare
from observer.turns.inputs import Reading, read_inputs
from observer.turns.redaction import MARK, find_everywhere, redact
from observer.turns.time_expressions import validity

T = TypeVar("T")
ACCEPTED = Counter[str]()
"""How often a parser took an input: one that refuses all is no parser."""
_FORGED = re.compile(r"<\||\|>|</?(?:think|tool_call|tool_response)\b", re.IGNORECASE)
_TURN = re.compile(r"(?:USER|ASSISTANT): ")
MANY = 40
"""Rows of one input that are looked at closely."""
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
AT = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)


def parts_of(data: bytes, n: int) -> list[str]:
    """The text in `n` parts; those that are not there are empty."""
    parts = data.decode("utf-8", "replace").split("\n%%\n", n - 1)
    return parts + [""] * (n - len(parts))


def accepted(work: Callable[..., T], *given: Any) -> T | None:
    """What our code makes of an input, or None when it says no."""
    try:
        made = work(*given)
    except ObserverError:
        return None
    ACCEPTED[work.__qualname__] += 1
    return made


def any_json(text: str) -> Any:
    """The text as JSON, or as itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def check_exchange(exchange: str, n_turns: int) -> None:
    """No text starts a turn or makes a control token, whichever tokenizer looks at it."""
    assert not _FORGED.search(exchange), "control token"
    lines = exchange.split("\n")
    assert lines == exchange.splitlines() or exchange.endswith("\n"), "a line break that is not ours"
    starts = [line for line in lines if not line.startswith("  ")]
    assert len(starts) == n_turns and all(map(_TURN.match, starts)), "a turn that nobody took"
    assert unicodedata.is_normalized("NFC", exchange), "not NFC"
    exchange.encode("utf-8")
    tokenizer = _tokenizer()
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert special and not special & set(tokenizer.encode(exchange).ids), "a control token"


def prompts(data: bytes) -> None:
    """Messages of any kind, as a prompt."""
    user, assistant, earlier = parts_of(data, 3)
    for text in (user, assistant):
        assert clean(clean(text)) == clean(text)
    context = [Turn(role="user", content=earlier)] if earlier else []
    n_turns = 1 + bool(assistant.strip()) + len(context)
    check_exchange(render_exchange(user, assistant, context), n_turns)
    as_read = data.decode("utf-8", "surrogateescape")
    check_exchange(render_exchange(as_read, as_read), 1 + bool(as_read.strip()))


def chats(data: bytes) -> None:
    """A file of conversations, as labelling and observing read it; nothing goes missing."""
    for every_turn in (False, True):
        inputs = accepted(read_inputs, data, "chats.jsonl", Reading(every_turn))
        if inputs is None:
            continue
        for item in inputs.items[:MANY]:
            context = item.fields.get("context", [])
            said = bool(item.fields["assistant_message"].strip())
            check_exchange(item.exchange, len(context) + 1 + said)
            json.dumps(item.fields, ensure_ascii=False).encode("utf-8")
        for row in inputs.unreadable:
            assert row.reason
            json.dumps(row.text, ensure_ascii=False).encode("utf-8")
        lines = data.decode("utf-8-sig", "replace").split("\n")
        if any(line.strip() not in ("", "---") for line in lines):
            assert inputs.items or inputs.unreadable, "lines went missing"


def turns(data: bytes) -> None:
    """What a caller of the client hands over as a turn."""
    turn, context = (any_json(part) for part in parts_of(data, 2))
    for given in (turn, tuple(turn) if isinstance(turn, list) else turn):
        found = accepted(to_exchange, given, context if isinstance(context, list) else ())
        if found:
            assert found.user_message.strip()
            check_exchange(prepare(found).prompt, len(found.context) + 1 + bool(found.assistant_message.strip()))


def redaction(data: bytes) -> None:
    """Secrets in the messages of an exchange."""
    user, assistant = parts_of(data, 2)
    texts = {"user": user, "assistant": assistant}
    for place, secrets in find_everywhere(texts).items():
        text, position, kept = texts[place], 0, ""
        for secret in secrets:
            assert position <= secret.start < secret.end <= len(text), "secrets out of order"
            kept, position = kept + text[position : secret.start] + MARK, secret.end
        assert redact(text, secrets) == kept + text[position:]


def times(data: bytes) -> None:
    """Time expressions, and the times that turns carry."""
    when, at = parts_of(data, 2)
    try:
        base = datetime.fromisoformat(at.strip())
    except ValueError:
        base = AT
    for temporal in Temporal:
        held = validity(when, temporal, base)
        for moment in (held.valid_at, held.invalid_at):
            assert moment is None or (moment.tzinfo is None) == (base.tzinfo is None)


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(PROJECT_ROOT / NANO_BASE / "tokenizer.json"))
