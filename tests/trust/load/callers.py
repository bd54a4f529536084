"""Callers that ask one Observer without a pause: threads that wait, or tasks of one event loop that await."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from observer.client import Observer
from observer.observation import Exchange
from tests.trust.load.account import Ledger

Manner = Literal["threads", "tasks"]
PATIENCE_S = 180.0
"""After the last question; an answer that has not come by then is lost."""


def drive(manner: Manner, observer: Observer, turns: Sequence[Exchange], ledger: Ledger, seconds: float) -> float:
    """Have `ledger.n_callers` ask for `seconds`, each again when it has its answer; return the seconds to the last."""
    began = time.perf_counter()
    deadline = began + seconds

    def is_over() -> bool:
        return time.perf_counter() >= deadline or ledger.is_full

    if manner == "threads":
        _with_threads(observer, turns, ledger, is_over)
    else:
        asyncio.run(_with_tasks(observer, turns, ledger, is_over))
    return time.perf_counter() - began


def _with_threads(observer: Observer, turns: Sequence[Exchange], ledger: Ledger, is_over: Callable[[], bool]) -> None:
    def call(caller: int) -> None:
        while not is_over():
            number, turn = ledger.ask()
            asked_at = time.perf_counter()
            try:
                found = observer.observe(turns[turn].model_copy(update={"id": str(number)}))
                ledger.answered(number, caller, time.perf_counter() - asked_at, found)
            except Exception as error:  # whatever it is, it is booked and fails the test
                ledger.failed(number, error)

    threads = [
        threading.Thread(target=call, args=(n,), name=f"caller-{n}", daemon=True) for n in range(ledger.n_callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not is_over():
            thread.join(1.0)
    last = time.perf_counter() + PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, last - time.perf_counter()))


async def _with_tasks(
    observer: Observer, turns: Sequence[Exchange], ledger: Ledger, is_over: Callable[[], bool]
) -> None:
    async def call(caller: int) -> None:
        while not is_over():
            number, turn = ledger.ask()
            asked_at = time.perf_counter()
            try:
                found = await observer.aobserve(turns[turn].model_copy(update={"id": str(number)}))
                ledger.answered(number, caller, time.perf_counter() - asked_at, found)
            except Exception as error:  # whatever it is, it is booked and fails the test
                ledger.failed(number, error)

    tasks = [asyncio.create_task(call(caller)) for caller in range(ledger.n_callers)]
    pending = set(tasks)
    while pending and not is_over():
        _, pending = await asyncio.wait(pending, timeout=1.0)
    if pending:
        _, pending = await asyncio.wait(pending, timeout=PATIENCE_S)
    for task in pending:
        task.cancel()
