"""From an exchange to a prompt without secrets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

from observer.observation import Exchange, Redaction, Span
from observer.prompts import render_exchange
from observer.schema import Turn
from observer.turns.grounding import Message, fold, messages_of
from observer.turns.redaction import MARK, SHORTEST_TOLD, find_everywhere, find_secrets, redact


@dataclass(frozen=True)
class Prepared:
    """An exchange, what the model may see of it, the secrets that it does not, and how much of the oldest context."""

    exchange: Exchange
    shown: Exchange
    messages: list[Message]
    redactions: list[Redaction]
    secrets: frozenset[str]
    text_hash: str
    context_cut: int = 0

    @cached_property
    def prompt(self) -> str:
        """What the model gets to see."""
        shown = self.shown
        return render_exchange(shown.user_message, shown.assistant_message, shown.context[self.context_cut :])

    def without_oldest(self, n_turns: int) -> Prepared:
        """The same, but for so many of the oldest context turns."""
        return replace(self, context_cut=n_turns)

    def shortened(self) -> Prepared | None:
        """Without more of the oldest context turns, twice as many each time; None where there are no more."""
        n_turns = len(self.shown.context)
        return self.without_oldest(min(2 * self.context_cut + 1, n_turns)) if self.context_cut < n_turns else None

    @cached_property
    def text(self) -> str:
        """All messages, as they were written."""
        return "\n".join(message.text for message in self.messages)

    def is_secret(self, text: str) -> bool:
        """Whether an answer's text gives away a secret of the exchange, or looks like one."""
        folded = fold(text)
        return fold(MARK) in folded or any(secret in folded for secret in self.secrets) or bool(find_secrets(text))


def prepare(exchange: Exchange) -> Prepared:
    """Blank the secrets of every message and render what is left."""
    texts = {message.place: message.text for message in messages_of(exchange)}
    found = find_everywhere(texts)
    shown = {place: redact(text, found[place]) for place, text in texts.items()}
    context = [Turn(role=turn.role, content=shown[f"context[{n}]"]) for n, turn in enumerate(exchange.context)]
    said = json.dumps([exchange.at and exchange.at.isoformat(), sorted(shown.items())])
    redactions = [
        Redaction(kind=secret.kind, span=Span(message=place, start=secret.start, end=secret.end))
        for place, secrets in found.items()
        for secret in secrets
    ]
    secrets = {fold(texts[r.span.message][r.span.start : r.span.end]) for r in redactions}
    return Prepared(
        exchange=exchange,
        text_hash=hashlib.sha256(said.encode()).hexdigest()[:16],
        shown=exchange.model_copy(
            update={"user_message": shown["user"], "assistant_message": shown["assistant"], "context": context}
        ),
        messages=messages_of(exchange, {place: [(s.start, s.end) for s in own] for place, own in found.items()}),
        redactions=redactions,
        secrets=frozenset(secret for secret in secrets if len(secret) >= SHORTEST_TOLD),
    )
