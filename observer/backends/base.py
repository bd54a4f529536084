"""What every backend can do. `observer.engine.engine.Engine` is one without knowing of this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

from observer.observation import Asked, Completion, Grade, Progress, Reading, no_progress

Answers = list[Grade] | list[Completion] | list[Reading]


class Backend(Protocol):
    """Answers exchanges rendered by `prompts.render_exchange`, greedily, in their order.

    Raises RowsError for rows that can have no answer, ObserverError for what keeps all from one.
    """

    name: str

    def grade(self, exchanges: Sequence[str], progress: Progress = no_progress) -> list[Grade]:
        """The labels. A backend that cannot tell probabilities leaves them an empty dict."""
        ...

    def extract(
        self,
        exchanges: Sequence[str],
        constrained: bool = True,
        progress: Progress = no_progress,
        *,
        logprobs: bool = False,
    ) -> list[Completion]:
        """Extractions as text; `constrained` keeps them to the schema and names to the exchange, where that can be."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class ReadingBackend(Backend, Protocol):
    """A backend that reads an exchange once for both tasks."""

    def observe(
        self, exchanges: Sequence[str], progress: Progress = no_progress, *, logprobs: bool = False
    ) -> list[Reading]:
        """A grade of every exchange, an extraction of those that are not DISCARD."""
        ...


@runtime_checkable
class MeasuringBackend(Backend, Protocol):
    """A backend that knows how long an exchange may be."""

    @property
    def room(self) -> int:
        """Tokens of the longest exchange after which a usual answer has room."""
        ...

    def n_tokens(self, exchange: str) -> int: ...


@runtime_checkable
class ConcurrentBackend(Protocol):
    """A backend that many callers may ask at once."""

    n_parallel: int
    """Questions under way at a time, from all of them together."""


def ask(backend: Backend, asked: Asked, exchanges: Sequence[str], progress: Progress = no_progress) -> Answers:
    """What the client wants to know; `observe` is for a ReadingBackend alone."""
    if asked == "grade":
        return backend.grade(exchanges, progress)
    if asked == "extract":
        return backend.extract(exchanges, progress=progress, logprobs=True)
    assert isinstance(backend, ReadingBackend)
    return backend.observe(exchanges, progress, logprobs=True)
