"""Callers that ask one Observer without a pause: threads that wait, or tasks of one event loop that await."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
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

    def is_over() -> bool:
        return time.perf_counter() >= began + seconds or ledger.is_full

    def call(caller: int) -> None:
        while not is_over():
            number, turn = ledger.ask()
            asked_at = time.perf_counter()
            try:
                found = observer.observe(turns[turn].model_copy(update={"id": str(number)}))
                ledger.answered(number, caller, time.perf_counter() - asked_at, found)
            except Exception as error:  # whatever it is, it is booked and fails the test
                ledger.failed(number, error)

    async def acall(caller: int) -> None:
        while not is_over():
            number, turn = ledger.ask()
            asked_at = time.perf_counter()
            try:
                found = await observer.aobserve(turns[turn].model_copy(update={"id": str(number)}))
                ledger.answered(number, caller, time.perf_counter() - asked_at, found)
            except Exception as error:  # as above
                ledger.failed(number, error)

    async def with_tasks() -> None:
        tasks = [asyncio.create_task(acall(caller)) for caller in range(ledger.n_callers)]
        await asyncio.wait(tasks, timeout=seconds + PATIENCE_S)  # what is left is cancelled with the loop

    if manner == "threads":
        threads = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(ledger.n_callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, began + seconds + PATIENCE_S - time.perf_counter()))
    else:
        asyncio.run(with_tasks())
    return time.perf_counter() - began
