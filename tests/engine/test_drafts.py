"""Several tokens a step: what is drafted, when drafting stops, and that answers are those of one token a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from observer.data.dataset import read_split
from observer.engine.drafts import Drafts, Habits, best_length, call_cost, can_pay, price
from observer.engine.engine import Completion, Engine
from observer.engine.llama_model import n_common
from observer.paths import PROJECT_ROOT
from observer.prompts import Task, exchange_of

N_NEW = 160


def draft(drafts: Drafts) -> list[int]:
    """All that it guesses."""
    drafts.expected()
    return drafts.draft(99)


@pytest.fixture(scope="module")
def engine(nano_gguf: Path) -> Iterator[Engine]:
    with Engine(nano_gguf, n_seq=8, n_threads=1, max_new_tokens=N_NEW) as engine:
        yield engine


@pytest.fixture(scope="module")
def exchanges() -> list[str]:
    rows = read_split(PROJECT_ROOT / "data" / "val.jsonl")
    return [exchange_of(row) for row in rows if row["task"] == Task.EXTRACT][::16]


def n_parted(found: Sequence[Completion], expected: Sequence[Completion]) -> int:
    """How many answers part, after checking where: rounding decides between two tokens that are as likely."""
    n_parted = 0
    for answer, other in zip(found, expected, strict=True):
        assert answer.logprobs is not None and other.logprobs is not None
        n = n_common(answer.tokens, other.tokens)
        is_parted = answer.tokens != other.tokens
        n_parted += is_parted
        assert is_parted or answer.truncated == other.truncated
        # of nonsense, where nano is far from sure
        assert answer.logprobs[:n] == pytest.approx(other.logprobs[:n], abs=0.4)
        assert not is_parted or answer.logprobs[n] == pytest.approx(other.logprobs[n], abs=0.1)
    return n_parted


def test_answers_are_those_of_one_token_a_step(engine: Engine, nano_gguf: Path, exchanges: list[str]) -> None:
    with Engine(nano_gguf, n_seq=8, n_threads=1, max_new_tokens=N_NEW, drafts=False) as one_by_one:
        expected = one_by_one.extract(exchanges, logprobs=True)
        assert one_by_one.model.n_outputs >= sum(answer.n_tokens for answer in expected)
    found = engine.extract(exchanges, logprobs=True)
    assert n_parted(found, expected) <= 2
    assert 0.5 < engine.habits.n_accepted / engine.habits.n_drafted < 1
    assert engine.habits.n_accepted > sum(answer.n_tokens for answer in found) / 3


def test_a_lone_row_and_one_that_is_read_once_are_drafted_too(engine: Engine, exchanges: list[str]) -> None:
    expected = engine.extract(exchanges[:4], logprobs=True)
    before = engine.habits.n_accepted
    assert n_parted([engine.extract([exchange], logprobs=True)[0] for exchange in exchanges[:4]], expected) <= 1
    assert engine.habits.n_accepted > before
    readings = engine.observe(exchanges[:4], logprobs=True)
    pairs = [(r.completion, answer) for r, answer in zip(readings, expected, strict=True) if r.completion]
    assert n_parted([found for found, _ in pairs], [answer for _, answer in pairs]) <= 1


@pytest.mark.parametrize("n_new", range(1, 9))
def test_a_draft_never_passes_the_room_that_is_left(nano_gguf: Path, exchanges: list[str], n_new: int) -> None:
    with Engine(nano_gguf, n_threads=1, max_new_tokens=n_new) as engine:
        (answer,) = engine.extract(exchanges[:1])
    assert (answer.n_tokens, answer.truncated) == (n_new, True)


def test_a_first_answer_begins_with_a_draft_of_what_the_grammar_asks_for(engine: Engine) -> None:
    habits = Habits(engine.model)
    drafts = Drafts(habits, engine.model.tokenize("USER: I moved to Zandrovia"))
    beginning = engine.model.detokenize(draft(drafts))
    assert beginning.startswith('{"entities":[{"name":"')


@pytest.mark.parametrize(
    ("expected", "prices", "n"),
    [
        ([[0.0, 0.9, 1.7, 2.3]], [0.0, 0.0, 0.0, 0.0], 3),
        ([[0.0, 0.9, 1.7, 2.3]], [0.0, 0.5, 1.0, 1.8], 2),  # 0.4, 0.7, 0.5
        ([[0.0, 0.9, 1.7, 2.3]], [0.0, 1.5, 1.5, 1.5], 3),  # -0.6, 0.2, 0.8: what any at all cost
        ([[0.0, 0.9, 1.7, 2.3], [0.0]], [0.0, 1.0, 2.0, 3.0], 0),  # the row without a guess pays as well
        ([[0.0, 0.9, 1.7], [0.0, 0.6]], [0.0, 1.0, 2.0], 1),  # 0.5, 0.3
        ([[0.0]], [0.0, 0.1], 0),
    ],
)
def test_drafts_have_the_length_that_saves_most(expected: list[list[float]], prices: list[float], n: int) -> None:
    assert best_length(expected, prices) == n


def test_drafts_that_cost_what_they_save_at_most_are_not_made() -> None:
    assert can_pay([0.0, 3.0, 3.5], n_rows=2)
    assert not can_pay([0.0, 2.0, 4.0], n_rows=2)


def test_a_drafted_token_passes_over_the_cells_of_its_row_too() -> None:
    assert price(0, 4, 100) == 0
    assert price(8, 1, 0) == pytest.approx(call_cost(9) - 1)
    assert price(8, 1, 0) < price(8, 1, 4000) < 8


def test_a_call_costs_more_the_more_tokens_it_decodes() -> None:
    costs = [call_cost(n) for n in range(1, 200)]
    assert costs[0] == 1 and costs == sorted(costs)


def test_a_name_that_began_as_one_in_the_exchange_is_drafted_to_its_end(engine: Engine) -> None:
    exchange = engine.model.tokenize("USER: I moved to Zandrovia")
    name = engine.model.tokenize("Zandrovia")
    shared = next(n for n in range(1, len(name)) if exchange[-len(name) + n :] == name[n:])
    drafts = Drafts(Habits(engine.model), exchange)
    drafts.take(engine.model.tokenize('{"entities":[{"name":"') + name[: shared + 1], 0)
    assert len(name) > shared + 1
    assert draft(drafts)[: len(name) - shared - 1] == name[shared + 1 :]


def test_a_row_whose_drafts_are_refused_goes_back_to_one_token_and_comes_again(engine: Engine) -> None:
    letters = [engine.model.tokenize(letter)[0] for letter in "abcdefghijklmnopqrst"]  # each calls the next one
    drafts = Drafts(Habits(engine.model), letters)
    written = engine.model.tokenize('{"entities":[{"name":"')
    drafts.take(written, 0)

    def length_after(letter: int) -> int:
        written.append(letter)
        drafts.take(written, 0)
        return len(draft(drafts))

    refused = [length_after(letter) for letter in letters[:14:2]]
    assert refused[0] > 1 and refused[-1] == 0
    right = [length_after(letter) for letter in letters[13:17]]
    assert right[0] == 1 and right[-1] > 1
