"""Works driven in threads: all of what they yield arrives, and whatever is raised ends them all and is told."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Generator

import pytest

from observer.engine.threads import run_side_by_side


class Work:
    """Yields numbers, and remembers whether it was closed and in which thread it ran."""

    def __init__(self, n_steps: int, fault_at: int | None = None) -> None:
        self.n_steps, self.fault_at = n_steps, fault_at
        self.has_ended = False
        self.threads: set[int] = set()

    def run(self) -> Generator[list[int]]:
        try:
            for step in range(self.n_steps):
                self.threads.add(threading.get_ident())
                if step == self.fault_at:
                    raise ValueError(f"step {step}")
                yield [step] if step % 2 else []
        finally:
            self.has_ended = True


@pytest.mark.parametrize("n_works", [0, 1, 3])
def test_all_that_is_yielded_arrives_in_this_thread(n_works: int) -> None:
    works, found, threads = [Work(10) for _ in range(n_works)], list[int](), set[int]()

    def receive(items: list[int]) -> None:
        found.extend(items)
        threads.add(threading.get_ident())

    run_side_by_side([work.run() for work in works], receive)
    assert sorted(found) == sorted([1, 3, 5, 7, 9] * n_works)
    assert threads <= {threading.get_ident()}
    assert all((threading.get_ident() in work.threads) == (n_works == 1) for work in works)


@pytest.mark.parametrize("n_works", [1, 3])
def test_what_one_work_raises_ends_all_and_is_raised(n_works: int) -> None:
    works = [Work(4, fault_at=3), *(Work(10**9) for _ in range(n_works - 1))]
    with pytest.raises(ValueError, match="step 3"):
        run_side_by_side([work.run() for work in works], lambda _: None)
    assert all(work.has_ended for work in works)


@pytest.mark.parametrize("n_works", [1, 3])
def test_an_interrupt_while_receiving_ends_all_works_and_no_thread_is_left(n_works: int) -> None:
    def stop(_: list[int]) -> None:
        raise KeyboardInterrupt

    works, n_threads = [Work(10**9) for _ in range(n_works)], threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([work.run() for work in works], stop)
    assert all(work.has_ended for work in works)
    assert threading.active_count() == n_threads


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill there ends the process")
def test_ctrl_c_while_the_works_have_nothing_to_say_ends_them() -> None:
    def silent(work: Work) -> Generator[list[int]]:
        for _ in work.run():
            time.sleep(0.001)
            yield []

    works = [Work(10**9), Work(10**9)]
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([silent(work) for work in works], lambda _: None)
    timer.join()
    assert all(work.has_ended for work in works)
