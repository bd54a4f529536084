"""`Observer`: one model behind one interface, for a turn or for many, waiting or awaited.

    with Observer("outputs/nano") as observer:
        seen = observer.observe(("I'm at Bosch now", "Congratulations!"))

Answers do not depend on which form is called, nor on the turns beside them beyond the rounding of the engine's
floating-point sums. An Observer may be shared by threads and by event loops.
"""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from observer.backends.base import ConcurrentBackend, MeasuringBackend, ReadingBackend, ask
from observer.backends.opening import MAX_NEW_TOKENS, TIMEOUT_S, open_backend
from observer.backends.shared import TOGETHER, SharedBackend
from observer.errors import ObserverError, RowsError
from observer.observation import Asked, Completion, Exchange, Grade, GradeResult, Observation, Progress, no_progress
from observer.schema import Label
from observer.turns.accept import ContextLike, TurnLike, to_exchange
from observer.turns.after_model import observation
from observer.turns.before_model import Prepared, prepare


class Observer:
    """Watches conversations with the model that `model` names: `FILE.gguf`, a run's folder, `hf:FOLDER`, `ollama:NAME`.

    `timeout_s` bounds each answer of a server; an answer has at most `max_new_tokens`, a prompt and its answer `n_ctx`
    (None: what the model was made for). `keep_above`: a turn is DISCARD unless the probability that it is worth keeping
    is above this; None takes the likeliest label. Where a turn is asked for: a user message, (user, assistant), an
    Exchange, or OpenAI messages; `context` are turns before it, `at` is its time. Of more context than a model has
    room for, it is shown the newest turns: `Observation.context_cut`.
    Raises ObserverError for a model that is not there and for a turn that can have no answer.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        n_threads: int | None = None,
        timeout_s: float = TIMEOUT_S,
        max_new_tokens: int = MAX_NEW_TOKENS,
        n_ctx: int | None = None,
        keep_above: float | None = None,
    ) -> None:
        self._backend = open_backend(
            model, n_threads=n_threads, timeout_s=timeout_s, max_new_tokens=max_new_tokens, n_ctx=n_ctx,
            keep_above=keep_above,
        )  # fmt: skip
        self._reads_once = isinstance(self._backend, ReadingBackend)
        measuring = self._backend if isinstance(self._backend, MeasuringBackend) else None
        self._measure, self._room = (measuring.n_tokens, measuring.room) if measuring else (None, 0)
        self._lock = threading.Lock()
        is_concurrent = isinstance(self._backend, ConcurrentBackend)
        self._shared = None if is_concurrent else SharedBackend(self._backend, self._lock, self._check_open)
        # Not the event loop's own threads: those are few, and its file and address look-ups wait for one.
        self._threads = ThreadPoolExecutor(TOGETHER, thread_name_prefix="observer")
        self._is_open = True

    @property
    def name(self) -> str:
        """The model's name, as in `Observation.model`."""
        return self._backend.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model after the answer under way; leave a server at once. The observer cannot be used again."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._backend.close()
                self._threads.shutdown(wait=False)

    def grade(self, turn: TurnLike, *, context: ContextLike = (), at: datetime | None = None) -> GradeResult:
        """How much the turn is worth remembering."""
        return _grade_of(_single(self._run("grade", [to_exchange(turn, context, at)])))

    def extract(self, turn: TurnLike, *, context: ContextLike = (), at: datetime | None = None) -> Observation:
        """Entities and relationships, whatever the turn is worth."""
        return _single(self._run("extract", [to_exchange(turn, context, at)]))

    def observe(self, turn: TurnLike, *, context: ContextLike = (), at: datetime | None = None) -> Observation:
        """Grade, then extract unless DISCARD."""
        return _single(self._run("observe", [to_exchange(turn, context, at)]))

    def grade_many(self, turns: Iterable[TurnLike], progress: Progress = no_progress) -> list[Observation]:
        """Observations with a grade alone, in the turns' order. A turn that can have no answer has a `fault`."""
        return self._run("grade", turns, progress)[0]

    def extract_many(self, turns: Iterable[TurnLike], progress: Progress = no_progress) -> list[Observation]:
        """`extract` for many at once, on all cores; order and faults as in `grade_many`."""
        return self._run("extract", turns, progress)[0]

    def observe_many(self, turns: Iterable[TurnLike], progress: Progress = no_progress) -> list[Observation]:
        """`observe` for many at once, on all cores; order and faults as in `grade_many`."""
        return self._run("observe", turns, progress)[0]

    async def agrade(self, turn: TurnLike, *, context: ContextLike = (), at: datetime | None = None) -> GradeResult:
        """`grade`, awaited: it is asked in a thread."""
        return _grade_of(_single(await self._arun("grade", [to_exchange(turn, context, at)])))

    async def aextract(self, turn: TurnLike, *, context: ContextLike = (), at: datetime | None = None) -> Observation:
        """`extract`, awaited."""
        return _single(await self._arun("extract", [to_exchange(turn, context, at)]))

    async def aobserve(self, turn: TurnLike, *, context: ContextLike = (), at: datetime | None = None) -> Observation:
        """`observe`, awaited."""
        return _single(await self._arun("observe", [to_exchange(turn, context, at)]))

    async def agrade_many(self, turns: Iterable[TurnLike], progress: Progress = no_progress) -> list[Observation]:
        """`grade_many`, awaited. `progress` is called in another thread, here and below."""
        return (await self._arun("grade", turns, progress))[0]

    async def aextract_many(self, turns: Iterable[TurnLike], progress: Progress = no_progress) -> list[Observation]:
        """`extract_many`, awaited."""
        return (await self._arun("extract", turns, progress))[0]

    async def aobserve_many(self, turns: Iterable[TurnLike], progress: Progress = no_progress) -> list[Observation]:
        """`observe_many`, awaited."""
        return (await self._arun("observe", turns, progress))[0]

    async def _arun(
        self, asked: Asked, turns: Iterable[TurnLike], progress: Progress = no_progress
    ) -> tuple[list[Observation], dict[int, str]]:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, asked, turns, progress)

    def _run(
        self, asked: Asked, turns: Iterable[TurnLike], progress: Progress = no_progress
    ) -> tuple[list[Observation], dict[int, str]]:
        """Ask what is needed and put it together; the faults of turns without an answer are told beside.

        `progress` counts turns that are done with: their last answer is in.
        """
        turns = list(turns)
        prepared, faults = _prepared(turns)
        prepared = {index: self._fitted(ready) for index, ready in prepared.items()}
        waiting = [index for index in prepared if index not in faults]
        grades: dict[int, Grade] = {}
        completions: dict[int, Completion] = {}
        if asked == "observe" and self._reads_once:
            progress(len(turns) - len(waiting), len(turns))
            readings = self._ask("observe", waiting, prepared, faults, _offset(progress, turns, waiting))
            grades = {index: reading.grade for index, reading in readings.items()}
            completions = {index: reading.completion for index, reading in readings.items() if reading.completion}
        else:
            if asked != "extract":
                of_grades = _offset(progress, turns, waiting) if asked == "grade" else no_progress
                grades = self._ask("grade", waiting, prepared, faults, of_grades)
                waiting = [index for index in waiting if index in grades and grades[index].label != Label.DISCARD]
            if asked != "grade":
                progress(len(turns) - len(waiting), len(turns))
                completions = self._ask("extract", waiting, prepared, faults, _offset(progress, turns, waiting))
        found = [
            observation(
                ready,
                self.name,
                asked,
                grade=grades.get(index),
                completion=completions.get(index),
                fault=faults.get(index),
            )
            for index, ready in prepared.items()
        ]
        return found, faults

    def _fitted(self, ready: Prepared) -> Prepared:
        """The turn without as many of its oldest context turns as the model has no room for."""
        measure, n_turns = self._measure, len(ready.exchange.context)
        if not measure or not n_turns or len(ready.prompt.encode()) <= self._room:  # a token is a byte at least
            return ready

        def fits(n_cut: int) -> bool:
            return measure(ready.without_oldest(n_cut).prompt) <= self._room

        with self._lock:  # or the model could be closed meanwhile
            self._check_open()
            return ready.without_oldest(bisect_left(range(n_turns), True, key=fits))

    def _ask(
        self,
        asked: Asked,
        waiting: Sequence[int],
        prepared: dict[int, Prepared],
        faults: dict[int, str],
        progress: Progress,
    ) -> dict[int, Any]:
        """Answers by the turn's index; turns that can have none go to `faults`, the others are asked again.

        One that only its server found too long is asked again with less of its context, in `prepared` too.
        """
        found: dict[int, Any] = {}
        left = list(waiting)
        while left:
            prompts = [prepared[index].prompt for index in left]
            so_far = _offset(progress, waiting, left)
            try:
                if self._shared:
                    answers = self._shared.ask(asked, prompts, so_far)
                else:
                    self._check_open()
                    answers = ask(self._backend, asked, prompts, so_far)
                return found | dict(zip(left, answers, strict=True))
            except RowsError as error:
                found |= {left[row]: answer for row, answer in error.answers.items()}
                for row, fault in error.faults.items():
                    shorter = prepared[left[row]].shortened() if row in error.too_long else None
                    if shorter:
                        prepared[left[row]] = shorter
                    else:
                        faults[left[row]] = fault
                left = [index for index in left if index not in found and index not in faults]
                progress(len(waiting) - len(left), len(waiting))
        return found

    def _check_open(self) -> None:
        if not self._is_open:
            raise ObserverError(f"{self.name}: this observer is closed; open another")


def _prepared(turns: Sequence[TurnLike]) -> tuple[dict[int, Prepared], dict[int, str]]:
    prepared: dict[int, Prepared] = {}
    faults: dict[int, str] = {}
    for index, turn in enumerate(turns):
        try:
            exchange = to_exchange(turn)
        except ObserverError as error:
            faults[index] = str(error)
            exchange = turn if isinstance(turn, Exchange) else Exchange(user_message="")
        prepared[index] = prepare(exchange)
    return prepared, faults


def _offset(progress: Progress, turns: Sequence[Any], waiting: Sequence[int]) -> Progress:
    """Progress of the turns that wait, as progress of all."""
    n_before = len(turns) - len(waiting)
    return lambda done, _total: progress(n_before + done, len(turns))


def _single(result: tuple[list[Observation], dict[int, str]]) -> Observation:
    (observed,), faults = result
    if faults:
        raise ObserverError(f"turn: {faults[0]}")
    return observed


def _grade_of(observed: Observation) -> GradeResult:
    assert observed.grade is not None, "a turn without a grade has a fault, which is raised"
    return observed.grade
