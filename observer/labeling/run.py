"""Asks for every answer that the ledger lacks: workers, the budget, and when to stop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from observer.console.progress import Progress
from observer.errors import ObserverError
from observer.labeling.answers_file import Ledger
from observer.labeling.jobs import Call, Job, Sampling, next_call
from observer.labeling.pricing import Price
from observer.labeling.server import Endpoint, NotAnswered, Refused, Server

GIVE_UP_AFTER = 10
"""So many calls in a row without an answer, each with all its retries: the server is down."""

BUDGET_MARGIN = 1.5
"""A call in flight counts as this times its estimate, or as the dearest call so far: the budget has to hold."""


@dataclass(frozen=True)
class Terms:
    """What a run may do: calls at once, and what the ledger may come to cost in all."""

    concurrency: int = 8
    price: Price | None = None
    budget_usd: float | None = None


@dataclass
class Run:
    """The state that the workers share. `stop` says why no further call is sent."""

    sampling: Sampling
    ledger: Ledger
    terms: Terms
    refused: dict[Job, str] = field(default_factory=dict)
    stop: str = ""
    last_fault: str = ""
    reserved_usd: float = 0.0
    in_flight: int = 0
    dearest_usd: float = 0.0
    failed_in_a_row: int = 0

    def ask_all(self, jobs: Sequence[Job], endpoint: Endpoint) -> None:
        """Return when every job has its answers, or `stop` or `last_fault` says why some have not.

        Raises ObserverError for what fails every call alike.
        """
        missing = [job for job in jobs if next_call(self.sampling, job, self.ledger.answers)]
        if missing:
            with closing(Progress("answers", len(jobs), had=len(jobs) - len(missing))) as progress:
                asyncio.run(self._ask_all(deque(missing), endpoint, progress))

    async def _ask_all(self, jobs: deque[Job], endpoint: Endpoint, progress: Progress) -> None:
        server = Server(endpoint, self.sampling, self.terms.price, progress.say)
        try:
            await asyncio.gather(*(self._work(jobs, server, progress) for _ in range(self.terms.concurrency)))
        finally:
            await server.close()
        if self.refused and not self.ledger.answers:  # not these rows are at fault, but every request
            refusal = next(iter(self.refused.values()))
            self.stop = f"not one of {len(self.refused)} requests was taken; {refusal}; check --model and --temperature"
            self.refused.clear()

    async def _work(self, jobs: deque[Job], server: Server, progress: Progress) -> None:
        """Take jobs until none is left, or the budget has room for fewer workers."""
        while jobs and not self.stop:
            job = jobs.popleft()
            while call := next_call(self.sampling, job, self.ledger.answers):
                reserve_usd = self._cost_at_most_usd(call)
                if not self._fits(reserve_usd):
                    return jobs.appendleft(job)
                if not await self._ask(job, call, reserve_usd, server):
                    break
            progress.advance(note=f"${self.ledger.cost_usd:.4f}")

    async def _ask(self, job: Job, call: Call, reserve_usd: float, server: Server) -> bool:
        """Send one call and record its answer; False when there is none."""
        self.reserved_usd += reserve_usd
        self.in_flight += 1
        try:
            answer = await server.ask(call)
            self.ledger.append(call.key, answer)
            self.dearest_usd = max(self.dearest_usd, answer.cost_usd)
            self.failed_in_a_row = 0
        except Refused as error:
            self._refuse(job, str(error))
            return False
        except NotAnswered as error:
            if error.paid:
                self.ledger.append(call.key, error.paid)
            self._fail(str(error))
            return False
        except ObserverError:
            self.stop = "a fault of every call"  # the other workers send nothing more
            raise
        finally:
            self.reserved_usd -= reserve_usd
            self.in_flight -= 1
        return True

    def _cost_at_most_usd(self, call: Call) -> float:
        estimate_usd = self.terms.price.cost_usd(*call.tokens) if self.terms.price else 0.0
        return max(BUDGET_MARGIN * estimate_usd, self.dearest_usd)

    def _fits(self, reserve_usd: float) -> bool:
        """Whether the budget has room; the last worker, with no call in flight, ends the run when it has not."""
        budget_usd = self.terms.budget_usd
        if self.stop or budget_usd is None:
            return not self.stop
        if self.ledger.cost_usd + self.reserved_usd + reserve_usd <= budget_usd:
            return True
        if self.in_flight == 0:
            self.stop = f"the next call could pass the budget of ${budget_usd:g}; a larger --budget-usd goes on"
        return False

    def _refuse(self, job: Job, fault: str) -> None:
        self.refused[job] = fault
        if not self.ledger.answers and len(self.refused) >= GIVE_UP_AFTER:
            self.stop = "every request is refused"

    def _fail(self, fault: str) -> None:
        self.last_fault = fault
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= GIVE_UP_AFTER:
            self.stop = f"{self.failed_in_a_row} calls in a row without an answer; {fault}; the same command resumes"
