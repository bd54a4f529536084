"""Guesses at the next tokens of an extraction, so that one decode call can write several. Whether a guess is right is
`generation`'s to find out: it changes how fast an answer is written, never what it says.

An answer is keys, quotes and brackets that the grammar asks for, names that stand in the exchange, and names that stood
in `entities` and come again in `relationships`. What leads from one piece to the next is counted over the answers so
far, beginning with one made-up answer a predicate, so that a first answer's keys and predicates are known.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llama_cpp import llama_supports_gpu_offload

from observer.engine.llama_model import LlamaModel
from observer.schema import USER, Entity, EntityType, Extraction, Predicate, Relationship, Temporal

MOST_DRAFTED = 15
"""Tokens drafted at once."""
_LEAST = 0.05
"""A draft that is whole right with a lower probability is not made longer."""
_CALL = (
    ((1, 128), (1.0, 2.0)) if llama_supports_gpu_offload() else ((1, 2, 4, 8, 16, 32), (1.0, 2.4, 3.5, 4.0, 4.7, 9.4))
)
"""Tokens of a decode call, and what it takes in calls of one token. On a CPU as measured (docs/benchmarks/engine.md); a
GPU reads the weights for one token as for a hundred, which was not measured."""
_PASSED_CELL = 0.0 if llama_supports_gpu_offload() else 0.25e-3
"""What a token takes for every one before it, in the same unit."""
_LEARNED_ANSWERS = 512
"""More would take memory and tell little new."""
_STRUCTURE, _COPIED = 6, 4
"""Tokens of context: before what every answer has, and within what is copied."""
_START = -1


def call_cost(n_tokens: int) -> float:
    """What a decode call takes, in calls of one token; beyond the last place measured it grows with its tokens."""
    places, costs = _CALL
    if n_tokens > places[-1]:
        return costs[-1] * n_tokens / places[-1]
    return float(np.interp(n_tokens, places, costs))


def price(n_drafted: int, n_rows: int, n_held: float) -> float:
    """What so many drafted tokens a row cost, in tokens of a call that writes one for each row, which have `n_held`
    before theirs.
    """
    attention = _PASSED_CELL * n_held
    n, one = n_drafted * n_rows, call_cost(n_rows)
    return (call_cost(n_rows + n) - one + n * attention) / (one / n_rows + attention)


def can_pay(prices: Sequence[float], n_rows: int) -> bool:
    """Whether drafts of some length save more than they cost where all of them are right."""
    return any(n * n_rows > cost for n, cost in enumerate(prices))


def best_length(expected: Sequence[Sequence[float]], prices: Sequence[float]) -> int:
    """How many tokens to draft for each row: as many as save most.

    `expected` are for each row the tokens likely to be right of 0, 1, 2, … drafted, each of which saves one of a later
    call; `prices` what so many cost, in the same unit.
    """
    n_most = min(len(prices), max(map(len, expected)))
    savings = [sum(right[min(n, len(right) - 1)] for right in expected) - prices[n] for n in range(n_most)]
    return savings.index(max(savings))


class Followers:
    """Which tokens followed which up to `longest` tokens."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._after: dict[tuple[int, ...], Counter[int]] = {}

    def add(self, context: Sequence[int], token: int) -> None:
        for n in range(1, min(self._longest, len(context)) + 1):
            self._after.setdefault(tuple(context[len(context) - n :]), Counter())[token] += 1

    def after(self, context: Sequence[int]) -> Iterator[Counter[int]]:
        """What followed the last token of the context, then its last two, and so on as long as anything did."""
        for n in range(1, min(self._longest, len(context)) + 1):
            if (found := self._after.get(tuple(context[len(context) - n :]))) is None:
                return
            yield found


@dataclass(frozen=True)
class _Place:
    """Where in an answer: after which keys, quotes and brackets, values left out, and after what of an open value."""

    structure: tuple[int, ...] = (_START,)
    value: tuple[int, ...] = ()
    is_open: bool = False

    @property
    def context(self) -> tuple[int, ...]:
        return self.structure + self.value


class Habits:
    """How a model's answers go on, learned from its own; `n_drafted` and `n_accepted` count tokens of all rows."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._is_quote: dict[int, tuple[bool, bool]] = {}
        self._n_learned = 0
        self.followers = Followers(_STRUCTURE)
        self.n_drafted = self.n_accepted = 0
        for answer in _made_up_answers():
            self._add(model.tokenize(answer))

    def learn(self, answer: Sequence[int]) -> None:
        """From a whole answer, without its end."""
        if self._n_learned < _LEARNED_ANSWERS:
            self._n_learned += 1
            self._add(answer)

    def step(self, place: _Place, token: int) -> _Place:
        """The place after one more token."""
        if token not in self._is_quote:
            piece = self._model.piece(token)
            self._is_quote[token] = b'"' in piece, piece.endswith(b':"')
        is_quote, opens_value = self._is_quote[token]
        if place.is_open and not is_quote:
            return _Place(place.structure, (*place.value, token)[-_STRUCTURE:], True)
        return _Place((*place.structure, token)[-_STRUCTURE:], (), opens_value)

    def _add(self, answer: Sequence[int]) -> None:
        place = _Place()
        for token in answer:
            self.followers.add(place.context, token)
            place = self.step(place, token)


class Drafts:
    """One row's guesses. `exchange` is what it may copy from.

    A row whose first guess is refused is drafted half as much, down to one token a call; a guess that would have been
    right, decoded or not, doubles it.
    """

    def __init__(self, habits: Habits, exchange: Sequence[int]) -> None:
        self._habits = habits
        self._copied = Followers(_COPIED)
        self._place = _Place()
        self._recent: list[int] = []
        self._n_allowed = MOST_DRAFTED
        self._guess: list[int] = []
        for token in exchange:
            self._follow(token)
        self._recent = []
        self._n_taken = 0

    def expected(self) -> list[float]:
        """Guess what comes next; of the first 0, 1, 2, … tokens of the guess, how many are likely right."""
        place, recent, probability, expected = self._place, self._recent[:], 1.0, [0.0]
        self._guess = []
        while len(self._guess) < MOST_DRAFTED:
            token, share = self._next(place, recent)
            probability *= share
            if probability < _LEAST:
                break
            self._guess.append(token)
            expected.append(expected[-1] + probability)
            place = self._habits.step(place, token)
            recent.append(token)
        return expected[: self._n_allowed + 1]

    def draft(self, n_tokens: int) -> list[int]:
        """So many tokens of the guess, or all that are likely enough."""
        drafted = self._guess[: min(n_tokens, self._n_allowed)]
        self._habits.n_drafted += len(drafted)
        return drafted

    def take(self, answer: Sequence[int], n_accepted: int) -> None:
        """Learn how the answer went on after the last draft, of which `n_accepted` tokens were right."""
        self._habits.n_accepted += n_accepted
        written = answer[self._n_taken :]
        self._n_taken = len(answer)
        if self._guess and written:
            is_right = self._guess[0] == written[0]
            self._n_allowed = min(MOST_DRAFTED, 2 * self._n_allowed + 1) if is_right else self._n_allowed // 2
        self._guess = []
        for token in written:
            self._follow(token)
            self._place = self._habits.step(self._place, token)

    def _follow(self, token: int) -> None:
        self._copied.add(self._recent, token)
        self._recent = [*self._recent, token][-_COPIED:]

    def _next(self, place: _Place, recent: Sequence[int]) -> tuple[int, float]:
        """The likeliest next token and its probability: every longer context corrects what the shorter ones say.

        The shorter ones count for as much as the longer has seen different tokens (Witten and Bell, 1991). Within a
        value the longest passage that goes on the same counts last, the more the longer it is.
        """
        levels = [(1, level) for level in self._habits.followers.after(place.context)]
        if place.value:
            copied = list(self._copied.after(recent))
            levels += [(2 * len(copied), copied[-1])] if copied else []
        best = (_START, 0.0)
        for token in {level.most_common(1)[0][0] for _, level in levels}:
            share = 0.0
            for weight, level in levels:
                share = (weight * level[token] + len(level) * share) / (weight * level.total() + len(level))
            best = max(best, (token, share), key=lambda found: found[1])
        return best


def _made_up_answers() -> Iterator[str]:
    """One a predicate, each with names of its own, and one that is empty."""
    yield Extraction().to_compact_json()
    types, tenses = itertools.cycle(EntityType), itertools.cycle(Temporal)
    for number, (predicate, kind, temporal) in enumerate(zip(Predicate, types, tenses, strict=False)):
        name = predicate.title()
        yield Extraction(
            entities=[
                Entity(name=USER, type=EntityType.PERSON),
                Entity(name=name, type=kind, attributes={"detail": name} if number % 4 == 0 else {}),
            ],
            relationships=[
                Relationship(
                    subject=USER,
                    predicate=predicate,
                    object=name,
                    temporal=temporal,
                    when=name if number % 4 == 1 else None,
                )
            ],
        ).to_compact_json()
