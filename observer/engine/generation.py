"""Greedy answers of many rows at once: sequences are decoded together, refilled as they end, and kept within the cache.

A row that is to be graded and to write is read once: its labels are scored as branches of its text, then its cells are
cut back to what both prompts begin with. Which prompts, and in which context, is `engine`'s.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_supports_gpu_offload

from observer.engine.copying import Sources
from observer.engine.drafts import Drafts, Habits, call_cost
from observer.engine.grammar import Grammar
from observer.engine.llama_context import BATCH_OUTPUTS, BatchToken, LlamaContext, Logits
from observer.engine.llama_model import LlamaModel, n_common
from observer.engine.repeats import without_repeats
from observer.engine.rows import Row
from observer.errors import ObserverError
from observer.observation import grade_of
from observer.schema import Label

_MOST_WRITTEN = BATCH_OUTPUTS if llama_supports_gpu_offload() else 63
"""Tokens of rows that write in one call. On a CPU, flash attention takes 64 or more in tiles, and computes what it then
masks of the cells of other rows; on a GPU a token more costs little until a call cannot return its logits any more."""


@dataclass
class _Batch:
    """The tokens of one call, and what the logits at a place are for: tokens of labels to score, a row's next token."""

    tokens: list[BatchToken] = field(default_factory=list)
    to_score: dict[int, list[tuple[Row, int, int]]] = field(default_factory=dict)  # row, number of the label, token
    to_write: dict[int, tuple[Row, int | None]] = field(default_factory=dict)  # and the token drafted after that place
    scores: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)  # by the row's index, as below
    n_held: dict[int, int] = field(default_factory=dict)
    n_accepted: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)


class Generation:
    """The rows of one call, taken from `waiting` as `slots` of sequences and the `n_cells` that they share are free.

    A row that is graded needs a slot with a sequence for every label of `label_tokens`. With `habits` several tokens
    are written in a step: those of a draft up to the first that the row would not have written by itself.
    """

    def __init__(
        self,
        model: LlamaModel,
        context: LlamaContext,
        waiting: deque[Row],
        *,
        slots: Sequence[Sequence[int]],
        n_cells: int,
        label_tokens: Mapping[Label, Sequence[int]],
        grammar: Grammar | None,
        habits: Habits | None,
        wants_logprobs: bool,
        keep_above: float | None,
    ) -> None:
        self._model, self._context = model, context
        self._waiting = waiting
        self._free = deque(slots)
        self._n_cells = n_cells
        self._label_tokens = label_tokens
        self._n_label_tokens = sum(map(len, label_tokens.values()))
        self._grammar, self._habits = grammar, habits
        self._wants_logprobs, self._keep_above = wants_logprobs, keep_above
        self._active: list[Row] = []

    def run(self) -> Generator[list[Row]]:
        """Yield, step by step, the rows that ended with it."""
        while self._active or self._waiting:
            batch = self._next_batch()
            for places, logits in self._context.decode_together(batch.tokens):
                self._score(batch, places, logits)
                self._write(batch, places, logits)
            ended = [row for row in self._active if self._settle(row, batch)]
            for row in ended:
                self._release(row)
                row.close()
                if self._habits and row.has_ended and not row.repeated:
                    self._habits.learn(row.tokens)
            yield ended

    def _next_batch(self) -> _Batch:
        """What is left to decode of every active row's text, and of those that start."""
        while len(self._active) > 1 and self._n_used + len(self._active) > self._n_cells:
            self._suspend(self._active[-1])
        while self._free and self._waiting and self._fits(self._waiting[0]):
            self._start(self._waiting.popleft())
        batch = _Batch()
        n_written = sum(not row.is_to_be_graded for row in self._active)
        n_free = max(0, min(self._n_cells - self._n_used, _MOST_WRITTEN - n_written))
        n_tokens = sum(row.n_left for row in self._active)
        for row in self._active:
            if row.is_to_be_graded:
                self._add_graded(row, batch)
            else:
                n_drafted = self._add_written(row, batch, n_free, _price(n_tokens, n_written))
                n_free, n_tokens = n_free - n_drafted, n_tokens + n_drafted
        return batch

    @property
    def _n_used(self) -> int:
        """Cells of the active rows once the texts that they have now are decoded."""
        return sum(row.n_own + (self._n_label_tokens if row.is_to_be_graded else 0) for row in self._active)

    def _fits(self, row: Row) -> bool:
        return not self._active or self._n_used + row.n_own + row.n_expected + self._n_label_tokens <= self._n_cells

    def _start(self, row: Row) -> None:
        """Give the row sequences with its cached instruction."""
        row.sequences = self._free.popleft()
        for sequence in row.sequences if row.is_to_be_graded else row.sequences[:1]:
            self._context.share(row.prompt.instruction, sequence, row.prompt.n_shared)
        row.n_held = row.prompt.n_shared
        if self._grammar and row.to_write and row.grammar is None:
            row.grammar = self._grammar.start(Sources.of(row.exchange))
            row.drafts = self._drafts(row)
        self._active.append(row)

    def _drafts(self, row: Row) -> Drafts | None:
        prompt = row.to_write
        return Drafts(self._habits, prompt.tokens[prompt.n_shared :]) if self._habits and prompt else None

    def _suspend(self, row: Row) -> None:
        """Take the row's cells; it waits in front, and its text is decoded anew when there is room."""
        self._release(row)
        self._waiting.appendleft(row)

    def _release(self, row: Row) -> None:
        for sequence in row.sequences:
            self._context.release(sequence)
        self._free.append(row.sequences)
        self._active.remove(row)
        row.sequences = ()

    def _add_graded(self, row: Row, batch: _Batch) -> None:
        """The prompt once, in all sequences, then each label as a branch of it in one."""
        text, sequences = row.text, tuple(row.sequences)
        batch.tokens += _tokens(text, row.n_held, sequences)
        end_of_prompt = batch.to_score.setdefault(len(batch.tokens) - 1, [])
        for number, label in enumerate(self._label_tokens.values()):
            end_of_prompt.append((row, number, label[0]))
            for offset, (token, following) in enumerate(itertools.pairwise(label)):
                batch.to_score[len(batch.tokens)] = [(row, number, following)]
                batch.tokens.append(BatchToken(token, len(text) + offset, (sequences[number],), True))
        batch.scores[row.index] = np.zeros(len(self._label_tokens))

    def _add_written(self, row: Row, batch: _Batch, n_free: int, price: Callable[[int], float]) -> int:
        """The text and a draft of what follows it, for logits from its last token on; how long the draft is."""
        n_most = max(0, min(n_free, row.room - len(row.tokens) - 1))
        draft = row.forced[:n_most] or (row.drafts.draft(n_most, price) if row.drafts else [])
        tokens = _tokens([*row.text, *draft], row.n_held, (row.sequences[0],), 1 + len(draft))
        first = len(batch.tokens) + len(tokens) - 1 - len(draft)
        batch.to_write |= {first + n: (row, token) for n, token in enumerate([*draft, None])}
        batch.tokens += tokens
        batch.n_accepted[row.index], batch.n_held[row.index] = 0, len(row.text) + len(draft)
        return len(draft)

    def _score(self, batch: _Batch, places: Sequence[int], logits: Logits) -> None:
        """Add up the labels' log-probabilities."""
        wanted = [(number, found) for number, place in enumerate(places) if (found := batch.to_score.get(place))]
        for number, found in wanted:
            total = log_sum_exp(logits[number])
            for row, label, token in found:
                batch.scores[row.index][label] += float(logits[number, token]) - total

    def _write(self, batch: _Batch, places: Sequence[int], logits: Logits) -> None:
        """Append what follows each row's text, as far as its draft is what it would have written itself."""
        best = logits.argmax(axis=1)
        for number, place in enumerate(places):
            row, drafted = batch.to_write.get(place, (None, None))
            if row and row.index not in batch.refused:
                n_before = len(row.tokens)
                token = self._append(row, int(best[number]), logits[number])
                if token == drafted and len(row.tokens) > n_before:
                    batch.n_accepted[row.index] += 1
                else:
                    batch.refused.add(row.index)

    def _append(self, row: Row, token: int, logits: npt.NDArray[np.float32]) -> int:
        """Choose the row's next token: the likeliest that its grammar allows, or what is forced on it."""
        if not np.isfinite(logits[token]):  # a NaN is the largest to argmax
            raise ObserverError(damaged(self._model))
        if row.forced:
            token = row.forced.pop(0)
        elif row.grammar and not row.grammar.allows(token):
            token = row.grammar.best(logits)
        row.has_ended = self._model.is_end(token)
        if row.has_ended:
            return token
        row.tokens.append(token)
        if self._wants_logprobs:
            row.logprobs.append(float(logits[token]) - log_sum_exp(logits))
        if row.grammar and len(row.tokens) < row.room:
            row.grammar.accept(token)
            if b"}" in self._model.piece(token) and (answer := without_repeats(self._model.detokenize(row.tokens))):
                self._go_back(row, self._model.tokenize(answer))
        return token

    def _go_back(self, row: Row, answer: Sequence[int]) -> None:
        """Let the row's answer be this one, which begins as it did, and go on from there."""
        assert self._grammar is not None and row.grammar is not None
        n_kept = min(n_common(row.tokens, answer), len(answer) - 1)
        row.forced, row.repeated = list(answer[n_kept:]), True
        del row.tokens[n_kept:], row.logprobs[n_kept:]
        row.grammar.close()
        row.grammar = self._grammar.start(row.grammar.sources)
        for token in row.tokens:
            row.grammar.accept(token)
        row.drafts = self._drafts(row)

    def _settle(self, row: Row, batch: _Batch) -> bool:
        """Take note of what the cache holds of the row now; True when the row needs nothing more."""
        if row.is_to_be_graded:
            self._take_grade(row, batch.scores[row.index])
            return row.to_write is None or row.grade is None or row.grade.label is Label.DISCARD
        if row.drafts:
            row.drafts.take(row.tokens, batch.n_accepted[row.index])
        row.n_held = len(row.text) - 1
        if batch.n_held[row.index] > row.n_held:
            self._context.cut(row.sequences[0], row.n_held)
        return row.has_ended or len(row.tokens) == row.room

    def _take_grade(self, row: Row, scores: npt.NDArray[np.float64]) -> None:
        if not np.isfinite(scores).all():
            raise ObserverError(damaged(self._model))
        graded = row.prompt
        shares = np.exp(scores - scores.max())
        row.grade = grade_of(dict(zip(Label, (shares / shares.sum()).tolist(), strict=True)), self._keep_above)
        for sequence in row.sequences[1:]:
            self._context.release(sequence)
        if row.to_write is None:
            return
        row.n_held = n_common(graded.tokens, row.to_write.tokens)
        if row.to_write.instruction == graded.instruction:
            self._context.cut(row.sequences[0], row.n_held)
        else:  # other examples before the exchange
            row.n_held = row.to_write.n_shared
            self._context.share(row.to_write.instruction, row.sequences[0], row.n_held)


def _price(n_tokens: int, n_rows: int) -> Callable[[int], float]:
    """What drafted tokens cost in a call of `n_tokens` others, in tokens of a call that writes one for each row."""
    without, a_token = call_cost(n_tokens), call_cost(n_rows) / n_rows
    return lambda n: (call_cost(n_tokens + n) - without) / a_token


def _tokens(text: Sequence[int], start: int, sequences: tuple[int, ...], n_wanted: int = 1) -> list[BatchToken]:
    """Those of the text from `start` on, for logits after the last `n_wanted`."""
    return [BatchToken(text[n], n, sequences, n >= len(text) - n_wanted) for n in range(start, len(text))]


def log_sum_exp(logits: npt.NDArray[np.float32]) -> float:
    """log Σ exp, added up in float64."""
    highest = logits.max()
    return float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def damaged(model: LlamaModel) -> str:
    """What to say of a model whose logits are not finite."""
    return f"{model.path}: its logits are not finite, so its weights are damaged; export or download it again"
