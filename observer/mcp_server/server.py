"""The four tools: observe, recall, history and forget. What an ObserverError says is the tool's error.

The protocol, the schemas and the stream are the package's; what is remembered is `memory`'s.
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Iterable
from datetime import date, datetime
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from observer import __version__
from observer.client import Observer
from observer.errors import ObserverError
from observer.memory.as_of import as_of as held_as_of
from observer.memory.facts import Fact, Operation
from observer.memory.store import Store
from observer.observation import Exchange, GradeResult
from observer.schema import Turn
from observer.turns.before_model import prepare

P = ParamSpec("P")
T = TypeVar("T")
INSTRUCTIONS = (
    "A long-term memory of what the user tells. Call `observe` with each exchange, in the user's own words; call "
    "`recall` before you answer what may depend on earlier conversations. What is over stays in `history`."
)
About = Annotated[str | None, Field(description="A name such as Lisbon, or words such as `works at`; all when missing")]
Limit = Annotated[int, Field(ge=1, le=500, description="How many at most, the latest")]
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
DELETES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)


class Remembered(BaseModel):
    """A fact as a sentence and as the memory has it. `known` is then or now where a day was asked for."""

    text: str
    fact: Fact
    known: Literal["then", "now"] | None = None


class Recalled(BaseModel):
    facts: list[Remembered]
    n_left_out: int = Field(description="How many more there are beyond the limit")


class Change(BaseModel):
    """What an exchange did to a fact, and when it was said."""

    text: str
    operation: Operation
    seen_at: datetime | None = None
    source: str | None = None


class Observed(BaseModel):
    """`fault` says why an answer of the model could not be read as a whole."""

    grade: GradeResult | None
    changes: list[Change]
    n_redacted: int = Field(description="Secrets that were blanked before the model read the exchange")
    fault: str | None


def build_server(observer: Observer, store: Store) -> MCPServer[Any]:
    """A server whose tools ask this observer and keep in this store; `run` serves them until its input ends."""
    server: MCPServer[Any] = MCPServer("observer", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING")

    @server.tool(annotations=WRITES)
    @_errors_told
    def observe(
        user_message: Annotated[str, Field(description="What the user wrote, word for word")],
        assistant_message: Annotated[str, Field(description="The reply to it")] = "",
        context: Annotated[tuple[Turn, ...], Field(description="Turns before it, where it speaks of `him`")] = (),
        at: Annotated[datetime | None, Field(description="When it was said, ISO 8601; now when missing")] = None,
        id: Annotated[str | None, Field(description="Of the exchange: one that came before counts once")] = None,
    ) -> Observed:
        """Grade an exchange for long-term memory (DISCARD, STORE, IMPORTANT) and remember what it states."""
        now = datetime.now().astimezone()
        said = Exchange(
            user_message=user_message, assistant_message=assistant_message, context=list(context), at=at or now
        )
        seen = observer.observe(said)
        if id and at is None:  # told again it is the same exchange, whenever `now` is
            timeless = prepare(said.model_copy(update={"at": None}))
            seen = seen.model_copy(update={"text_hash": timeless.text_hash})
        operations = store.apply(seen, id or f"mcp-{uuid.uuid4()}")
        changes = [Change(text=operation.fact.as_text(), operation=operation) for operation in operations]
        return Observed(grade=seen.grade, changes=changes, n_redacted=len(seen.redactions), fault=seen.fault)

    @server.tool(annotations=READS)
    @_errors_told
    def recall(
        about: About = None,
        as_of: Annotated[date | None, Field(description="What held at the end of this day, told twice")] = None,
        with_past: Annotated[bool, Field(description="Also what is over")] = False,
        limit: Limit = 50,
    ) -> Recalled:
        """What is known, the latest first. With `as_of` what held on a day: as was known then and as is known now."""
        if as_of is None:
            found = [Remembered(text=f.as_text(), fact=f) for f in store.known(is_current=not with_past)]
        else:
            held = held_as_of(store, as_of)
            found = [Remembered(text=f.as_text(), fact=f, known="then") for f in held.known_then]
            found += [Remembered(text=f.as_text(), fact=f, known="now") for f in held.known_now]
        found = _about(about, found, lambda remembered: remembered.fact)
        found.sort(key=lambda remembered: remembered.fact.last_seen, reverse=True)
        return Recalled(facts=found[:limit], n_left_out=max(len(found) - limit, 0))

    @server.tool(annotations=READS)
    @_errors_told
    def history(about: About = None, limit: Limit = 50) -> list[Change]:
        """What was learned and what ended, in the order in which it was said; the latest of it."""
        events = _about(about, store.history(), lambda event: event.operation.fact)[-limit:]
        return [Change(text=o.fact.as_text(), operation=o, seen_at=at, source=source) for at, source, o in events]

    @server.tool(annotations=DELETES)
    @_errors_told
    def forget(
        fact_id: Annotated[str, Field(description="The `id` of a fact from `recall`")],
        delete: Annotated[bool, Field(description="Leave nothing of it; only where the user asks for that")] = False,
    ) -> Remembered:
        """End a fact because the user asks for it; its history stays. With `delete` nothing of it stays."""
        fact = store.forget(fact_id, delete=delete)
        return Remembered(text=fact.as_text(), fact=fact)

    return server


def _errors_told(tool: Callable[P, T]) -> Callable[P, T]:
    """What the user can fix becomes the tool's error, with its text; all else the package calls a crash."""

    @functools.wraps(tool)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return tool(*args, **kwargs)
        except ObserverError as error:
            raise ToolError(str(error)) from error

    return told


def _about(about: str | None, items: Iterable[T], fact_of: Callable[[T], Fact]) -> list[T]:
    """Those of a name; where nothing has this name, those in whose sentence each of its words begins one."""
    items = list(items)
    if about is None:
        return items
    named = [item for item in items if about.casefold() in (fact_of(item).key[0], fact_of(item).key[2])]
    begins = [re.compile(rf"\b{re.escape(word)}", re.IGNORECASE) for word in about.split()]
    return named or [item for item in items if all(begin.search(fact_of(item).as_text()) for begin in begins)]
