"""Greedy answers of many rows at once: sequences are decoded together, refilled as they end, and kept within the cache.

Which prompts, and in which context, is `engine`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from observer.answers import Completion, Progress
from observer.errors import ObserverError
from observer.grammar import Grammar
from observer.llama import BatchToken, LlamaContext, LlamaModel, Logits

EXPECTED_ANSWER = 128
"""Tokens of an answer that a row finds room for when it starts; a longer one may have to wait for others to end."""


@dataclass
class Row:
    """An answer in the making; `n_shared` tokens of the prompt are the cached instruction's, `room` is its limit."""

    index: int
    prompt: Sequence[int]
    n_shared: int
    room: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    grammar: Grammar | None = None
    sequence: int | None = None
    has_ended: bool = False

    @property
    def n_own(self) -> int:
        """Cells of the cache that are this row's alone, once its last token is decoded."""
        return len(self.prompt) - self.n_shared + len(self.tokens)


class Generation:
    """One call's rows. Its answers depend on the rows and on the number of sequences and cells, on nothing else."""

    def __init__(
        self, model: LlamaModel, context: LlamaContext, *, prefix: int, sequences: Iterable[int], n_cells: int
    ) -> None:
        self._model, self._context = model, context
        self._prefix = prefix
        self._free = deque(sequences)
        self._n_cells = n_cells
        self._active: list[Row] = []
        self._waiting: deque[Row] = deque()

    def run(
        self, rows: Sequence[Row], grammar: Grammar | None, wants_logprobs: bool, progress: Progress
    ) -> list[Completion]:
        """The answers in the order of the rows' indices. Long prompts go first: the last ones to end are short."""
        self._waiting.extend(sorted(rows, key=lambda row: (-len(row.prompt), row.index)))
        n_done = 0
        try:
            while self._waiting or self._active:
                batch, owners = self._next_batch(grammar)
                for place, logits in self._context.decode(batch):
                    if not self._advance(owners[place], logits, wants_logprobs):
                        self._release(owners[place])
                        n_done += 1
                        progress(n_done, len(rows))
        finally:
            for row in rows:
                if row.grammar:
                    row.grammar.close()
        return [self._completion(row, wants_logprobs) for row in sorted(rows, key=lambda row: row.index)]

    def _next_batch(self, grammar: Grammar | None) -> tuple[list[BatchToken], dict[int, Row]]:
        """The next token of every active row and the prompts of those that start, with who is behind which logits."""
        while len(self._active) > 1 and self._n_used + len(self._active) > self._n_cells:
            self._suspend(self._active[-1])
        batch = [self._last_token(row) for row in self._active]
        owners = dict(enumerate(self._active))
        n_taken = self._n_used + len(batch)
        while self._waiting and self._free and self._fits(self._waiting[0], n_taken):
            row = self._waiting.popleft()
            n_taken += row.n_own
            if grammar and row.grammar is None:
                row.grammar = grammar.start()
            batch += self._start(row)
            owners[len(batch) - 1] = row
        return batch, owners

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
        self._context.copy_prefix(self._prefix, sequence, row.n_shared)
        text = [*row.prompt, *row.tokens]
        last = len(text) - 1
        return [BatchToken(text[n], n, (sequence,), n == last) for n in range(row.n_shared, len(text))]

    def _last_token(self, row: Row) -> BatchToken:
        assert row.sequence is not None
        return BatchToken(row.tokens[-1], len(row.prompt) + len(row.tokens) - 1, (row.sequence,), True)

    def _suspend(self, row: Row) -> None:
        """Take the row's cells; it waits in front, and its text is decoded anew when there is room."""
        self._release(row)
        self._waiting.appendleft(row)

    def _release(self, row: Row) -> None:
        assert row.sequence is not None
        self._context.clear(row.sequence)
        self._free.append(row.sequence)
        self._active.remove(row)
        row.sequence = None

    def _advance(self, row: Row, logits: Logits, wants_logprobs: bool) -> bool:
        """Choose the row's next token; return whether another must follow."""
        token = int(logits.argmax())
        if not np.isfinite(logits[token]):  # a NaN is the largest to argmax
            raise ObserverError(damaged(self._model))
        if row.grammar and not row.grammar.allows(token):
            token = row.grammar.best(logits)
        if self._model.is_end(token):
            row.has_ended = True
            return False
        row.tokens.append(token)
        if wants_logprobs:
            row.logprobs.append(float(logits[token]) - log_sum_exp(logits))
        if len(row.tokens) == row.room:
            return False
        if row.grammar:
            row.grammar.accept(token)
        return True

    def _completion(self, row: Row, has_logprobs: bool) -> Completion:
        return Completion(
            self._model.detokenize(row.tokens),
            tuple(row.tokens),
            truncated=not row.has_ended,
            logprobs=tuple(row.logprobs) if has_logprobs else None,
        )


def log_sum_exp(logits: Logits) -> float:
    """log Σ exp, added up in float64."""
    highest = float(logits.max())
    return highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def damaged(model: LlamaModel) -> str:
    """What to say of a model whose logits are not finite."""
    return f"{model.path}: its logits are not finite, so its weights are damaged; export or download it again"
