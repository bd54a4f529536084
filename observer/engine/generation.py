"""Greedy answers of many rows at once: rows are read, write on together, and make place for others as they end.

A row that is to be graded and to write is read once: its labels, and what only the prompt to write after has, are
branches of its text. A row that writes has a cache of its own, into which what was read is copied: a token then passes
over the cells of its row alone. Which prompts, and in which contexts, is `engine`'s.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from observer.engine.contexts import ReadingContext, WritingContext
from observer.engine.copying import Sources
from observer.engine.drafts import MOST_DRAFTED, Drafts, Habits, best_length, can_pay, price
from observer.engine.grammar import Grammar
from observer.engine.llama_context import BATCH_OUTPUTS, BatchToken, Logits
from observer.engine.llama_model import LlamaModel, n_common
from observer.engine.repeats import without_repeats
from observer.engine.rows import Row
from observer.errors import ObserverError
from observer.observation import Grade, grade_of
from observer.schema import Label


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
    """The rows of one call, in their order.

    They are read in `reader`, a few at a time, each in a slot with a sequence for every label of `label_tokens` and one
    for what it writes, and written in `writer`, each in a sequence of its own. With `habits` several tokens are written
    in a step: those of a draft up to the first that the row would not have written by itself.
    """

    def __init__(
        self,
        model: LlamaModel,
        reader: ReadingContext,
        writer: WritingContext,
        waiting: deque[Row],
        *,
        label_tokens: Mapping[Label, Sequence[int]],
        grammar: Grammar | None,
        habits: Habits | None,
        wants_logprobs: bool,
        keep_above: float | None,
    ) -> None:
        self._model, self._reader, self._writer = model, reader, writer
        self._waiting = waiting
        self._label_tokens = label_tokens
        self._n_label_tokens = sum(map(len, label_tokens.values()))
        self._grammar, self._habits = grammar, habits
        self._wants_logprobs, self._keep_above = wants_logprobs, keep_above
        self._active: list[Row] = []

    def run(self) -> Generator[list[Row]]:
        """Yield, step by step, the rows that ended with it."""
        while self._active or self._waiting:
            rows = self._next_rows()
            ended = self._read(rows) if rows else self._write_on()
            for row in ended:
                row.close()
                if self._habits and row.has_ended and not row.repeated:
                    self._habits.learn(row.tokens)
            yield ended

    def _next_rows(self) -> list[Row]:
        """Those that are read next: as many as there are cells to read them, and places to write their answers."""
        rows: list[Row] = []
        n_cells = n_writing = 0
        while self._waiting and len(rows) < len(self._reader.slots):
            row = self._waiting[0]
            n_cells += row.n_to_read(self._n_label_tokens)
            n_writing += row.is_to_be_written
            if n_writing > self._writer.n_rows - len(self._active) or (rows and n_cells > self._reader.n_cells):
                break
            rows.append(self._waiting.popleft())
        return rows

    def _read(self, rows: Sequence[Row]) -> list[Row]:
        """Grade the rows and let those that write begin; the others have ended."""
        context, batch = self._reader.context, _Batch()
        slots = list(zip(rows, self._reader.slots, strict=False))
        for row, slot in slots:
            self._add_read(row, slot, batch)
        for places, logits in context.decode_together(batch.tokens):
            self._score(batch, places, logits)
        for row, slot in slots:
            if row.to_grade:
                row.grade = self._grade(batch.scores[row.index])
            if row.is_to_be_written:
                self._start(row, slot[-1])
            self._reader.release(slot)
        return [row for row in rows if not row.is_to_be_written]

    def _add_read(self, row: Row, slot: Sequence[int], batch: _Batch) -> None:
        """What both prompts begin with once, in all sequences of the slot; then what only one of them has.

        The last token of the one to write is left for its first step.
        """
        *graded, written = slot
        for prompt, sequences in ((row.to_grade, graded), (row.to_write, [written])):
            if prompt:
                for sequence in sequences:
                    self._reader.context.share(prompt.instruction, sequence, prompt.n_shared)
        if row.to_grade:
            start = row.to_grade.n_shared
            batch.tokens += _tokens(row.to_grade.tokens[: row.n_both], start, tuple(slot), 0)
            batch.tokens += _tokens(row.to_grade.tokens, row.n_both or start, tuple(graded))
            self._add_labels(row, graded, batch)
        if row.to_write:
            batch.tokens += _tokens(row.text[:-1], row.n_both or row.to_write.n_shared, (written,), 0)

    def _add_labels(self, row: Row, sequences: Sequence[int], batch: _Batch) -> None:
        """Each label as a branch, in one of the sequences, of the prompt whose last token was added."""
        position = batch.tokens[-1].position
        end_of_prompt = batch.to_score.setdefault(len(batch.tokens) - 1, [])
        for number, label in enumerate(self._label_tokens.values()):
            end_of_prompt.append((row, number, label[0]))
            for offset, (token, following) in enumerate(itertools.pairwise(label), 1):
                batch.to_score[len(batch.tokens)] = [(row, number, following)]
                batch.tokens.append(BatchToken(token, position + offset, (sequences[number],), True))
        batch.scores[row.index] = np.zeros(len(self._label_tokens))

    def _grade(self, scores: npt.NDArray[np.float64]) -> Grade:
        if not np.isfinite(scores).all():
            raise ObserverError(damaged(self._model))
        shares = np.exp(scores - scores.max())
        return grade_of(dict(zip(Label, (shares / shares.sum()).tolist(), strict=True)), self._keep_above)

    def _start(self, row: Row, source: int) -> None:
        """Copy what was read of the row to where it writes."""
        place = self._free_places(self._writer.n_rows)[0]
        self._reader.context.copy(source, self._writer.context, place)
        row.sequence, row.n_held = place, row.n_text - 1
        if self._grammar and row.grammar is None:
            row.grammar = self._grammar.start(Sources.of(row.exchange))
            row.drafts = self._drafts(row)
        self._active.append(row)

    def _free_places(self, n_rows: int) -> list[int]:
        """Of the writer's first `n_rows`."""
        return sorted({*range(n_rows)} - {row.sequence for row in self._active})

    def _drafts(self, row: Row) -> Drafts | None:
        prompt = row.to_write
        return Drafts(self._habits, prompt.tokens[prompt.n_shared :]) if self._habits and prompt else None

    def _write_on(self) -> list[Row]:
        """A step of every row that writes; those that ended with it."""
        batch = _Batch()
        self._close_ranks()
        n_drafted = self._n_drafted()
        for row in self._active:
            self._add_written(row, n_drafted, batch)
        for places, logits in self._writer.context.decode_together(batch.tokens):
            self._write(batch, places, logits)
        ended = [row for row in self._active if self._settle(row, batch)]
        self._active = [row for row in self._active if row not in ended]
        return ended

    def _close_ranks(self) -> None:
        """Let the rows that write have the first places: only those that follow one another are decoded together."""
        context, n_rows = self._writer.context, len(self._active)
        outside = [row for row in self._active if row.sequence >= n_rows]
        for row, place in zip(outside, self._free_places(n_rows), strict=True):
            context.copy(row.sequence, context, place)
            context.clear(row.sequence)
            row.sequence = place
        self._active.sort(key=lambda row: row.sequence)

    def _n_drafted(self) -> int:
        """Tokens drafted for each row: only rows that have as many are decoded together."""
        n_rows = len(self._active)
        n_held = sum(row.n_held for row in self._active) / n_rows
        prices = [price(n, n_rows, n_held) for n in range(min(MOST_DRAFTED, BATCH_OUTPUTS // n_rows - 1) + 1)]
        if not can_pay(prices, n_rows):
            return 0
        return best_length([self._expected(row) for row in self._active], prices)

    @staticmethod
    def _expected(row: Row) -> list[float]:
        if row.forced:
            return [float(n) for n in range(len(row.forced) + 1)]
        return row.drafts.expected() if row.drafts else [0.0]

    def _add_written(self, row: Row, n_drafted: int, batch: _Batch) -> None:
        """The text and a draft of what follows it, for logits from its last token on."""
        text, n_most = row.text, max(0, min(n_drafted, row.room - len(row.tokens) - 1))
        draft = row.forced[:n_most] or (row.drafts.draft(n_most) if row.drafts else [])
        draft += text[-1:] * (n_most - len(draft))
        tokens = _tokens([*text, *draft], row.n_held, (row.sequence,), 1 + len(draft))
        first = len(batch.tokens) + len(tokens) - 1 - len(draft)
        batch.to_write |= {first + n: (row, token) for n, token in enumerate([*draft, None])}
        batch.tokens += tokens
        batch.n_accepted[row.index], batch.n_held[row.index] = 0, len(text) + len(draft)

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
        """Take note of what the cache holds of the row now; True when its answer has ended."""
        if row.drafts:
            row.drafts.take(row.tokens, batch.n_accepted[row.index])
        row.n_held = row.n_text - 1
        if batch.n_held[row.index] > row.n_held:
            self._writer.context.cut(row.sequence, row.n_held)
        return row.has_ended or len(row.tokens) == row.room


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
