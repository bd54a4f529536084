"""Greedy answers of many rows at once: sequences are decoded together, refilled as they end, and kept within the cache.

Which prompts, and in which context, is `engine`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from observer.engine.grammar import Grammar
from observer.engine.llama_context import BatchToken, LlamaContext, Logits
from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.observation import Completion

EXPECTED_ANSWER = 128
"""Tokens of an answer that a row finds room for when it starts; a longer one may have to wait for others to end."""


@dataclass(frozen=True)
class Prompt:
    """The tokens of the row `index`, the first `n_shared` of which are the cached instruction's."""

    index: int
    tokens: Sequence[int]
    n_shared: int

    @property
    def n_own(self) -> int:
        return len(self.tokens) - self.n_shared

    def own_tokens(self, sequences: tuple[int, ...], answer: Sequence[int] = ()) -> list[BatchToken]:
        """What is to be decoded of the prompt and the answer so far, for logits after the last token."""
        text = [*self.tokens, *answer]
        last = len(text) - 1
        return [BatchToken(text[n], n, sequences, n == last) for n in range(self.n_shared, len(text))]


@dataclass
class Row:
    """An answer in the making, of at most `room` tokens."""

    prompt: Prompt
    room: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    grammar: Grammar | None = None
    sequence: int | None = None
    has_ended: bool = False

    @property
    def n_own(self) -> int:
        """Cells of the cache that are this row's alone, once its last token is decoded."""
        return self.prompt.n_own + len(self.tokens)

    def close(self) -> None:
        if self.grammar:
            self.grammar.close()


_Batch = tuple[dict[int, Row], list[BatchToken]]
"""Whose next token follows from the logits at which place of a batch, and its tokens."""


class Generation:
    """The rows of one call, taken from `waiting` as sequences and the `n_cells` that they share are free."""

    def __init__(
        self,
        model: LlamaModel,
        context: LlamaContext,
        waiting: deque[Row],
        *,
        instruction: int,
        sequences: Iterable[int],
        n_cells: int,
        wants_logprobs: bool,
    ) -> None:
        self._model, self._context = model, context
        self._waiting = waiting
        self._instruction = instruction
        self._free = deque(sequences)
        self._n_cells = n_cells
        self._wants_logprobs = wants_logprobs
        self._active: list[Row] = []

    def run(self, grammar: Grammar | None) -> Generator[list[Row]]:
        """Yield, step by step, the rows whose answers ended with it."""
        while batch := self._next_batch(grammar):
            rows, tokens = batch
            ended: list[Row] = []
            for places, logits in self._context.decode_together(tokens):
                ended += self._advance([rows[place] for place in places], logits)
            for row in ended:
                self._release(row)
                row.close()
            yield ended

    def _next_batch(self, grammar: Grammar | None) -> _Batch | None:
        """The next token of every active row, and the prompts of those that start; None when all rows have ended."""
        while len(self._active) > 1 and self._n_used + len(self._active) > self._n_cells:
            self._suspend(self._active[-1])
        parts = [(row, [self._last_token(row)]) for row in sorted(self._active, key=lambda row: row.sequence or 0)]
        n_taken = self._n_used + len(parts)
        while self._free and self._waiting and self._fits(self._waiting[0], n_taken):
            row = self._waiting.popleft()
            n_taken += row.n_own
            if grammar and row.grammar is None:
                row.grammar = grammar.start()
            parts.append((row, self._start(row)))
        return _joined(parts) if parts else None

    @property
    def _n_used(self) -> int:
        return sum(row.n_own - 1 for row in self._active)

    def _fits(self, row: Row, n_taken: int) -> bool:
        left = min(row.room - len(row.tokens), EXPECTED_ANSWER)
        return not self._active or n_taken + row.n_own + left <= self._n_cells

    def _start(self, row: Row) -> list[BatchToken]:
        """Give the row a sequence with the cached instruction; return what is left to decode of its text."""
        sequence = row.sequence = self._free.popleft()
        self._active.append(row)
        self._context.share(self._instruction, sequence, row.prompt.n_shared)
        return row.prompt.own_tokens((sequence,), row.tokens)

    def _last_token(self, row: Row) -> BatchToken:
        assert row.sequence is not None
        return BatchToken(row.tokens[-1], len(row.prompt.tokens) + len(row.tokens) - 1, (row.sequence,), True)

    def _suspend(self, row: Row) -> None:
        """Take the row's cells; it waits in front, and its text is decoded anew when there is room."""
        self._release(row)
        self._waiting.appendleft(row)

    def _release(self, row: Row) -> None:
        assert row.sequence is not None
        self._context.release(row.sequence)
        self._free.append(row.sequence)
        self._active.remove(row)
        row.sequence = None

    def _advance(self, rows: Sequence[Row], logits: Logits) -> list[Row]:
        """Choose each row's next token from its logits; return the rows that end with it."""
        best = logits.argmax(axis=1)
        if not np.isfinite(logits[np.arange(len(rows)), best]).all():  # a NaN is the largest to argmax
            raise ObserverError(damaged(self._model))
        totals = log_sum_exp(logits) if self._wants_logprobs else None
        ended: list[Row] = []
        for number, (row, token) in enumerate(zip(rows, best.tolist(), strict=True)):
            if row.grammar and not row.grammar.allows(token):
                token = row.grammar.best(logits[number])
            row.has_ended = self._model.is_end(token)
            if not row.has_ended:
                row.tokens.append(token)
                if totals is not None:
                    row.logprobs.append(float(logits[number, token]) - float(totals[number]))
            if row.has_ended or len(row.tokens) == row.room:
                ended.append(row)
            elif row.grammar:
                row.grammar.accept(token)
        return ended


def _joined(parts: Sequence[tuple[Row, list[BatchToken]]]) -> _Batch:
    rows: dict[int, Row] = {}
    batch: list[BatchToken] = []
    for row, tokens in parts:
        batch += tokens
        rows[len(batch) - 1] = row
    return rows, batch


def completion_of(row: Row, model: LlamaModel, has_logprobs: bool) -> Completion:
    """The row's answer as its caller gets it."""
    return Completion(
        model.detokenize(row.tokens),
        tuple(row.tokens),
        truncated=not row.has_ended,
        logprobs=tuple(row.logprobs) if has_logprobs else None,
    )


def log_sum_exp(logits: Logits) -> npt.NDArray[np.float64]:
    """log Σ exp of each row, added up in float64."""
    highest = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - highest).sum(axis=-1, dtype=np.float64)
    return highest[..., 0].astype(np.float64) + np.log(total)


def damaged(model: LlamaModel) -> str:
    """What to say of a model whose logits are not finite."""
    return f"{model.path}: its logits are not finite, so its weights are damaged; export or download it again"
