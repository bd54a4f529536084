"""Many threads, one model: questions in their order, those of a kind together, and one's fault is nobody else's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from observer import Observer
from observer.backends.shared import TOGETHER, SharedBackend
from observer.errors import ObserverError, RowsError
from observer.observation import Asked, Completion, Grade, Progress, no_progress
from observer.prompts import Task
from observer.schema import Label


class Gate:
    """A backend that answers an exchange by its own text, once it is let through, and remembers its batches."""

    name = "gate"

    def __init__(self) -> None:
        self.batches: list[tuple[Task, list[str]]] = []
        self.is_entered, self.may_pass = threading.Event(), threading.Event()

    def grade(self, exchanges: Sequence[str], progress: Progress = no_progress) -> list[Grade]:
        self._enter(Task.GRADE, exchanges)
        return [Grade(Label.STORE, {Label.STORE: float(len(text))}) for text in exchanges]

    def extract(
        self,
        exchanges: Sequence[str],
        constrained: bool = True,
        progress: Progress = no_progress,
        *,
        logprobs: bool = False,
    ) -> list[Completion]:
        self._enter(Task.EXTRACT, exchanges)
        return [Completion(text, (), truncated=False) for text in exchanges]

    def _enter(self, task: Task, exchanges: Sequence[str]) -> None:
        self.batches.append((task, list(exchanges)))
        self.is_entered.set()
        assert self.may_pass.wait(30)
        faults = {n: "too long" for n, text in enumerate(exchanges) if text == "too long"}
        if faults:
            raise RowsError(faults)
        if "stop" in exchanges:
            raise KeyboardInterrupt

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Callers:
    """Threads that ask one after another, each once the one before it waits."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.pool = gate, ThreadPoolExecutor(64)
        self.shared = SharedBackend(gate, threading.Lock(), lambda: None)
        self.futures: list[Future[Any]] = []

    def ask(self, asked: Asked, *prompts: str) -> None:
        self.futures.append(self.pool.submit(self.shared.ask, asked, prompts))
        if len(self.futures) == 1:
            assert self.gate.is_entered.wait(30)
        while len(self.shared._waiting) < len(self.futures):
            pass

    def answers(self) -> list[Any]:
        """Let all through; the answers, or what was raised."""
        self.gate.may_pass.set()
        return [future.exception(30) or future.result() for future in self.futures]


@pytest.fixture
def callers() -> Callers:
    return Callers(Gate())


def test_what_waits_is_answered_in_its_order_single_prompts_of_a_task_together(callers: Callers) -> None:
    callers.ask("extract", "first")
    for number in range(3):
        callers.ask("extract", f"extract {number}")
        callers.ask("grade", "g" * (number + 1))
    callers.ask("grade", "many", "of them")
    callers.ask("grade", "last")
    answers = callers.answers()
    assert callers.gate.batches == [
        (Task.EXTRACT, ["first"]),
        (Task.EXTRACT, ["extract 0", "extract 1", "extract 2"]),
        (Task.GRADE, ["g", "gg", "ggg", "last"]),
        (Task.GRADE, ["many", "of them"]),
    ]
    own = [found[0].text if isinstance(found[0], Completion) else found[0].probabilities for found in answers]
    assert own[:5] == ["first", "extract 0", {Label.STORE: 1.0}, "extract 1", {Label.STORE: 2.0}]
    assert [len(found) for found in answers] == [1] * 7 + [2, 1]


def test_a_batch_has_a_bound(callers: Callers) -> None:
    callers.ask("extract", "first")
    for number in range(TOGETHER + 5):
        callers.ask("grade", str(number))
    callers.answers()
    assert [len(prompts) for _, prompts in callers.gate.batches] == [1, TOGETHER, 5]


def test_a_fault_of_one_is_nothing_to_the_others(callers: Callers) -> None:
    callers.ask("extract", "first")
    for text in ("one", "too long", "three"):
        callers.ask("extract", text)
    first, one, fault, three = callers.answers()
    assert (first[0].text, one[0].text, three[0].text) == ("first", "one", "three")
    assert isinstance(fault, RowsError) and fault.faults == {0: "too long"}


def test_an_interrupt_is_the_callers_own_and_what_waits_is_still_answered(callers: Callers) -> None:
    callers.ask("grade", "stop")
    callers.ask("extract", "after")
    interrupted, after = callers.answers()
    assert isinstance(interrupted, KeyboardInterrupt) and after[0].text == "after"
    assert callers.shared._waiting == []


def test_awaiting_callers_leave_the_event_loops_own_threads_alone(nano_gguf: Path) -> None:
    async def ask(observer: Observer) -> int:
        tasks = [asyncio.create_task(observer.agrade(f"I live in town {n}")) for n in range(64)]
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)  # as an address look-up does
        n_done = sum(task.done() for task in tasks)
        await asyncio.gather(*tasks)
        return n_done

    with Observer(nano_gguf, n_threads=1) as observer:
        observer.grade("hello")
        assert asyncio.run(ask(observer)) < 40
    with pytest.raises(ObserverError, match="this observer is closed"):
        asyncio.run(ask(observer))
