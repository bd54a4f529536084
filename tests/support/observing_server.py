"""A real HTTP server on loopback that answers Ollama's /api/chat as a good model would: people live where they say.

`I live in NAME` and `I left NAME` are IMPORTANT and state a home, now and in the past; all else is DISCARD.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from observer.prompts import CUES, Task
from observer.schema import Entity, EntityType, Extraction, Label, Predicate, Relationship, Temporal
from tests.support.loopback import Asked, Loopback, Sent

HOME = re.compile(r"USER: .*\bI (?P<verb>live in|left) (?P<place>\w+)[^\n]*(\nASSISTANT: [^\n]*)?$")


class ObservingServer:
    """`n_asked` counts questions by task; after `fails_after` of them there is no answer any more, and every
    `refuses_every`-th is refused with 503 first, as by a busy server.

    `n_waiting` callers have asked and are not answered while the server is `held`.
    """

    def __init__(self, delay_s: float = 0.0, refuses_every: int = 0) -> None:
        self.delay_s, self.refuses_every = delay_s, refuses_every
        self.fails_after: int | None = None
        self.n_asked = dict.fromkeys(Task, 0)
        self.n_waiting = 0
        self._lock = threading.Condition()
        self._n_come, self._n_free = 0, math.inf
        self._numbers = itertools.count(1)  # `next` is one step of the interpreter: no thread gets another's
        self._http = Loopback(self._send)
        self.host = self._http.host

    def running(self) -> AbstractContextManager[ObservingServer]:
        return self._http.serving(self)

    @contextmanager
    def held(self, after: int = 0) -> Iterator[None]:
        """Meanwhile no answer goes out but the first `after`."""
        self._let_go(lambda: self._n_come + after)
        try:
            yield
        finally:
            self.let_all_go()

    def let_waiting_go(self) -> None:
        """Who waits now is answered, who comes later waits."""
        self._let_go(lambda: self._n_come)

    def let_all_go(self) -> None:
        self._let_go(lambda: math.inf)

    def _let_go(self, n_free: Callable[[], float]) -> None:
        with self._lock:
            self._n_free = n_free()
            self._lock.notify_all()

    def _send(self, asked: Asked) -> Sent:
        messages = asked.json()["messages"]
        if self.refuses_every and next(self._numbers) % self.refuses_every == 0:
            return Sent({"error": "server busy, please try again"}, 503)
        content = self.answer(messages)
        if content is None:
            return Sent({"error": "the server is at its end"}, 400)
        return Sent({"message": {"role": "assistant", "content": content}, "done": True})

    def answer(self, messages: list[dict[str, str]]) -> str | None:
        """The model's words, or None for a server that is at its end."""
        task = next(task for task, cue in CUES.items() if messages[-1]["content"].endswith(f"\n{cue}"))
        with self._lock:
            if self.fails_after is not None and sum(self.n_asked.values()) >= self.fails_after:
                return None
            self.n_asked[task] += 1
        time.sleep(self.delay_s)
        with self._lock:
            self.n_waiting += 1
            number, self._n_come = self._n_come, self._n_come + 1
            self._lock.wait_for(lambda: number < self._n_free)
            self.n_waiting -= 1
        home = HOME.search(messages[-1]["content"].removesuffix(f"\n{CUES[task]}"))
        if task is Task.GRADE:
            return str(Label.IMPORTANT if home else Label.DISCARD)
        return extraction_of(home).to_compact_json()


def extraction_of(home: re.Match[str] | None) -> Extraction:
    if home is None:
        return Extraction()
    temporal = Temporal.ONGOING if home["verb"] == "live in" else Temporal.COMPLETED
    return Extraction(
        entities=[Entity(name="User", type=EntityType.PERSON), Entity(name=home["place"], type=EntityType.PLACE)],
        relationships=[
            Relationship(subject="User", predicate=Predicate("LIVES_IN"), object=home["place"], temporal=temporal)
        ],
    )
