"""What a caller may hand over as a turn, as an `Exchange`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from observer.errors import ObserverError
from observer.observation import Exchange, read_time
from observer.schema import Turn
from observer.turns.conversation import Unusable, exchanges, said_in, turns_of_messages

TurnLike = str | tuple[str, str] | Exchange | Sequence[Mapping[str, Any]]
"""A user message; user and assistant message; an exchange; or OpenAI `messages`, whose last exchange is meant.

A string is never parsed for `USER:` and `ASSISTANT:`: what a user writes cannot become a turn of its own.
"""
ContextLike = Sequence[Turn | Mapping[str, Any]]


def to_exchange(turn: TurnLike, context: ContextLike = (), at: datetime | None = None) -> Exchange:
    """`context` goes before the turn's own; `at` fills in what the turn does not say.

    Raises ObserverError for what is no turn, and for one in which the user says nothing.
    """
    found = _exchange(turn)
    try:
        update = {"context": [*_turns(context), *found.context], "at": found.at or read_time(at)}
    except ValueError as error:
        raise ObserverError(f"at: {error}, found {at!r:.60}") from None
    if not found.user_message.strip():
        raise ObserverError("turn: the user message is empty; nothing is there to observe")
    return found.model_copy(update=update)


def _exchange(turn: TurnLike) -> Exchange:
    if isinstance(turn, Exchange):
        return turn
    if isinstance(turn, str):
        return Exchange(user_message=turn)
    if isinstance(turn, tuple) and len(turn) == 2 and all(isinstance(part, str) for part in turn):
        user_message, assistant_message = turn
        return Exchange(user_message=str(user_message), assistant_message=str(assistant_message))
    if not isinstance(turn, list | tuple):
        raise ObserverError(f"turn: text, (user, assistant), an Exchange or messages are expected, found {turn!r:.60}")
    try:
        return next(exchanges(said_in(list(turn)), every_turn=False))[1]
    except Unusable as error:
        raise ObserverError(f"turn: {error}") from None


def _turns(context: ContextLike) -> list[Turn]:
    try:
        return turns_of_messages([turn.model_dump() if isinstance(turn, Turn) else dict(turn) for turn in context])
    except (Unusable, TypeError, ValueError) as error:
        raise ObserverError(f"context: {error}; turns of role and content are expected") from None
