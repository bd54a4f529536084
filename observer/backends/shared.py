"""One model in this process for many threads: their questions are answered in their order, those of a kind together.

A thread that finds nobody at work answers what waits, its own question among it; the others wait for theirs. So nobody
is passed over, and as many as wait share the model's batches.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from observer.backends.base import Answers, Backend, ask
from observer.observation import Asked, Progress, no_progress

TOGETHER = 32
"""Questions answered in one batch at most: a larger one would keep those that come later waiting for longer."""


@dataclass(eq=False)
class _Question:
    asked: Asked
    prompts: Sequence[str]
    progress: Progress
    answers: Answers = field(default_factory=list)
    error: Exception | None = None
    is_done: bool = False


class SharedBackend:
    """Asks `backend` while it holds `lock`, after `check`, which raises when there is nothing to ask any more."""

    def __init__(self, backend: Backend, lock: threading.Lock, check: Callable[[], None]) -> None:
        self._backend, self._lock, self._check = backend, lock, check
        self._waiting: list[_Question] = []
        self._list_lock = threading.Lock()

    def ask(self, asked: Asked, prompts: Sequence[str], progress: Progress = no_progress) -> Answers:
        """The answers in the prompts' order; raises what the backend raises for this question.

        `progress` is called by whichever thread is at work.
        """
        question = _Question(asked, prompts, progress)
        with self._list_lock:
            self._waiting.append(question)
        try:
            with self._lock:
                while not question.is_done:
                    self._answer_next()
        finally:
            self._leave(question)  # still there after an interrupt
        if question.error:
            raise question.error
        return question.answers

    def _answer_next(self) -> None:
        """Answer the question that waits longest, and those that go with it."""
        together = self._next()
        if len(together) == 1 or not self._answer_together(together):
            for question in together:
                self._answer_alone(question)

    def _next(self) -> list[_Question]:
        """Single prompts of one kind go together; many prompts fill the batches by themselves."""
        with self._list_lock:
            first = self._waiting[0]
            if len(first.prompts) != 1:
                return [first]
            alike = [other for other in self._waiting if other.asked == first.asked and len(other.prompts) == 1]
        return alike[:TOGETHER]

    def _answer_together(self, questions: Sequence[_Question]) -> bool:
        """False when there is a fault: it may be of one of them, and is nothing to the others."""
        try:
            answers = self._ask(questions[0].asked, [question.prompts[0] for question in questions], no_progress)
        except Exception:
            return False
        for question, answer in zip(questions, answers, strict=True):
            self._finish(question, [answer])  # type: ignore[list-item]
        return True

    def _answer_alone(self, question: _Question) -> None:
        try:
            self._finish(question, self._ask(question.asked, question.prompts, question.progress))
        except Exception as error:
            question.error = error
            self._finish(question, [])

    def _ask(self, asked: Asked, prompts: Sequence[str], progress: Progress) -> Answers:
        self._check()
        return ask(self._backend, asked, prompts, progress)

    def _finish(self, question: _Question, answers: Answers) -> None:
        question.answers, question.is_done = answers, True
        self._leave(question)

    def _leave(self, question: _Question) -> None:
        with self._list_lock, contextlib.suppress(ValueError):
            self._waiting.remove(question)
