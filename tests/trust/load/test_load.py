"""One Observer under many callers at once: nothing lost, nothing swapped, memory flat, and how long answers take.

64 callers, threads that wait or tasks of an event loop that await, share an Observer of the model in this process. Then
the client of an Ollama server has the same callers: one on loopback that computes nothing, so what is tested is the
client.

Callers ask again as soon as they have their answer, so latencies are those of a full queue. Every request has a number,
and its answer is compared with the one that its turn gets alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from eval.benchmarks.observing import choose_turns
from observer.client import Observer
from observer.observation import Exchange, GradeResult, Observation, ObservedEntity
from observer.schema import EntityType, Label
from tests.trust.conftest import Night, settings_of
from tests.trust.load.account import Account, Ledger
from tests.trust.load.callers import Manner, drive
from tests.trust.load.memory import MemorySampler, memory_use
from tests.trust.load.server import answering

MANNERS: tuple[Manner, ...] = get_args(Manner)
CALLERS, TURNS = 64, 256
SECONDS = {"model": 300, "server": 120}
"""For each manner."""
MOST_PER_S = 2_000
"""Requests a second that the ledger reserves room for; a faster client would end its part early."""


def observed(label: Label, names: Sequence[str] = (), share: float = 0.9, id: str | None = None) -> Observation:
    return Observation(
        task="observe",
        grade=GradeResult(label=label, probabilities={label: share}, confidence=share),
        entities=[ObservedEntity(name=name, type=EntityType.PERSON, is_grounded=True) for name in names],
        relationships=[],
        redactions=[],
        model="x",
        id=id,
    )


ANA, BO = observed(Label.STORE, ["Ana"]), observed(Label.STORE, ["Bo"])
NOTHING = observed(Label.DISCARD)


def test_the_account_tells_lost_repeated_foreign_and_different_answers_apart() -> None:
    ledger = Ledger([ANA, BO, NOTHING], n_callers=2, capacity=20)
    numbers = [ledger.ask()[0] for _ in range(9)]
    assert numbers == list(range(9))  # turns 0 1 2, three times over
    ledger.answered(0, 0, 0.1, observed(Label.STORE, ["Ana"], id="0"))  # right
    ledger.answered(1, 0, 0.2, observed(Label.STORE, ["Ana"], id="1"))  # the answer of turn 0
    ledger.answered(2, 0, 0.3, observed(Label.STORE, ["Cy"], id="2"))  # nobody's answer
    ledger.answered(3, 1, 0.4, observed(Label.STORE, ["Ana"], share=0.8, id="3"))  # right, but for rounding
    ledger.answered(4, 1, 0.5, observed(Label.STORE, ["Bo"], id="3"))  # came to another request
    ledger.answered(5, 1, 0.6, observed(Label.DISCARD, share=0.91, id="5"))  # right
    ledger.answered(5, 1, 0.6, observed(Label.DISCARD, id="5"))  # again
    ledger.answered(6, 1, 0.7, observed(Label.DISCARD, id="6"))  # the words of turn 2, but many turns have these
    ledger.failed(7, TimeoutError("no answer"))
    account = ledger.account(seconds=2.0)  # 8 was never answered
    assert (account.n_asked, account.n_answered) == (9, 7)
    assert account.errors == {"TimeoutError: no answer": 1}
    assert (account.requests_per_s, account.fewest_by_a_caller, account.most_by_a_caller) == (3.5, 3, 5)
    assert account.latency_ms["p50"] == pytest.approx(400) and account.latency_ms["max"] == pytest.approx(700)
    assert account.wrong == {"lost": 1, "twice": 1, "foreign": 2, "different": 2, "errors": 1}


def test_the_ledger_ends_the_part_before_it_is_full() -> None:
    ledger = Ledger([ANA], n_callers=2, capacity=4)
    for _ in range(2):
        ledger.ask()
    assert ledger.is_full  # the two callers may each have asked once more by the time they see it


@pytest.mark.parametrize(
    ("mb_a_minute", "step_mb", "is_flat"),
    [(0.0, 0.0, True), (0.5, 0.0, True), (1.5, 0.0, False), (0.0, 40.0, True), (-3.0, 0.0, True)],
)
def test_memory_is_flat_when_its_slope_is_and_a_single_step_is_none(
    mb_a_minute: float, step_mb: float, is_flat: bool
) -> None:
    samples = [(second, 100 + mb_a_minute * second / 60 + step_mb * (second > 500)) for second in range(600)]
    samples[:60] = [(second, 50 + 0.8 * second) for second in range(60)]  # the warm-up does not count
    use = memory_use(samples)
    assert use.is_flat == is_flat
    assert use.mb_per_min == pytest.approx(mb_a_minute, abs=0.05)
    assert (use.n_samples, use.start_mb) == (600, 50)


def test_memory_of_a_few_seconds_is_not_called_flat() -> None:
    use = memory_use([(0, 100), (1, 100), (2, 100)])
    assert use.mb_per_min is None and not use.is_flat


Asked = tuple[Observer, Sequence[Exchange]]


@contextmanager
def opened(of: str, model: str | Path, n_turns: int) -> Iterator[Asked]:
    """An Observer of `model` itself, or of a `server` in its place, and turns to ask it about."""
    if of == "model":
        with Observer(model) as observer:
            yield observer, choose_turns(n_turns)
        return
    with answering() as host, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_HOST", host)
        with Observer("ollama:load") as observer:
            yield observer, [Exchange(user_message=f"I live in Town{number}") for number in range(n_turns)]


def account_of(asked: Asked, manner: Manner, n_callers: int, seconds: float) -> Account:
    observer, turns = asked
    alone = [observer.observe(turn) for turn in turns]
    ledger = Ledger(alone, n_callers, capacity=n_callers + int(seconds * MOST_PER_S))
    return ledger.account(drive(manner, observer, turns, ledger, seconds))


NOTHING_WRONG = {"lost": 0, "twice": 0, "foreign": 0, "different": 0, "errors": 0}


@pytest.mark.slow
@pytest.mark.parametrize("of", ["model", "server"])
def test_every_caller_gets_its_own_answers(of: str, nano_gguf: Path) -> None:
    with opened(of, nano_gguf, 4) as asked:
        for manner in MANNERS:
            account = account_of(asked, manner, 8, seconds=1)
            assert account.n_asked == account.n_answered > 0
            assert account.wrong == NOTHING_WRONG, account.differences or account.errors


@pytest.fixture(scope="module", params=SECONDS)
def asked(request: pytest.FixtureRequest) -> Iterator[tuple[str, Asked]]:
    with opened(request.param, settings_of(request.config).model, TURNS) as found:
        yield request.param, found


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("manner", MANNERS)
def test_callers_lose_nothing_and_memory_is_flat(asked: tuple[str, Asked], manner: Manner, night: Night) -> None:
    """With `--scale` below a tenth the time is too short to say that memory is flat."""
    of, found = asked
    with MemorySampler() as sampler:
        account = account_of(found, manner, CALLERS, SECONDS[of] * night.scale)
    memory = memory_use(sampler.samples)
    night.record(of=of, callers=f"{CALLERS} {manner}", answered=account.n_answered, **account.wrong)
    night.record(a_second=f"{account.requests_per_s:.1f}")
    night.record(**{f"{name} ms": round(ms) for name, ms in account.latency_ms.items()})
    night.record(a_caller=f"{account.fewest_by_a_caller} to {account.most_by_a_caller}", **memory.figures)
    night.record(thread_caches="off" if "tcache_count=0" in os.environ.get("GLIBC_TUNABLES", "") else "on")
    assert account.wrong == NOTHING_WRONG, account.differences or account.errors
    assert memory.is_flat, "memory grows, or the time was too short to say"
