"""One thread's way through rows: its contexts over the shared weights, with each task's instruction in their caches.

Every prompt of a task begins with the same instruction: it is decoded once and shared by the sequences of a context.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence

import numpy as np

from observer.engine.batch_layout import Layout
from observer.engine.generation import EXPECTED_ANSWER, Generation, Prompt, Row, damaged, log_sum_exp
from observer.engine.grammar import Grammar
from observer.engine.llama_context import BatchToken, LlamaContext
from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.observation import Grade
from observer.prompts import Task
from observer.schema import Label

_INSTRUCTION = {task: number for number, task in enumerate(Task)}
"""The sequence that holds a task's instruction; those of rows follow."""
_FIRST_ROW = len(_INSTRUCTION)
_CELLS_STEP, _OWN_CELLS_STEP = 1024, 256
"""A cache grows by so many cells, since opening it anew decodes the instructions again."""

Instructions = Mapping[Task, Sequence[int]]
"""The tokens with which every prompt of a task begins."""


class Lane:
    """Grades and writes a batch of rows at a time. Nothing of it may be used by two threads at once."""

    def __init__(
        self,
        model: LlamaModel,
        layout: Layout,
        instructions: Instructions,
        label_tokens: Mapping[Label, Sequence[int]],
    ) -> None:
        self._model, self._layout = model, layout
        self._label_tokens = label_tokens
        n_graded = layout.n_graded * len(Label)
        self._grading = self._writing = _Instructed(model, layout, instructions, n_graded, is_unified=True)
        if layout.has_own_cells:  # which a row that is graded cannot have: its labels share the cells of its prompt
            self._writing = _Instructed(model, layout, instructions, layout.n_seq, is_unified=False)

    def close(self) -> None:
        self._grading.close()
        self._writing.close()

    def grade(
        self, waiting: deque[list[Prompt]], n_cells: int, *, is_alone: bool
    ) -> Generator[list[tuple[int, Grade]]]:
        """Yield the grades of one batch after the other, with the rows' indices; `n_cells` hold the largest."""
        context = self._grading.ready(Task.GRADE, n_cells)
        context.use_threads(*self._n_threads(is_alone))
        while prompts := _next(waiting):
            yield list(zip((p.index for p in prompts), self._grade_batch(context, prompts), strict=True))

    def write(
        self,
        task: Task,
        waiting: deque[Row],
        n_cells: int,
        n_at_once: int,
        *,
        grammar: Grammar | None,
        logprobs: bool,
        is_alone: bool,
    ) -> Generator[list[Row]]:
        """Yield the rows that end, step by step; `n_cells` as `n_cells_to_write` counts them."""
        context = self._writing.ready(task, n_cells)
        context.use_threads(*self._n_threads(is_alone))
        generation = Generation(
            self._model,
            context,
            waiting,
            instruction=_INSTRUCTION[task],
            sequences=range(_FIRST_ROW, _FIRST_ROW + n_at_once),
            n_cells=None if self._layout.has_own_cells else self._writing.n_cells,
            wants_logprobs=logprobs,
        )
        yield from generation.run(grammar)

    def _n_threads(self, is_alone: bool) -> tuple[int, int]:
        """For passes of a token, and of several. The sums of none of them depend on these numbers.

        (llama.cpp's flash attention cuts a single token's sum into as many parts as threads: it keeps to the lane's.)
        """
        n_threads = self._layout.n_threads
        return n_threads, n_threads * (self._layout.n_lanes if is_alone else 1)

    def _grade_batch(self, context: LlamaContext, prompts: Sequence[Prompt]) -> list[Grade]:
        """Decode each prompt once, with its labels as branches of it, all in one batch."""
        batch: list[BatchToken] = []
        predicted: dict[int, list[tuple[int, int, int]]] = {}  # batch index -> (row, label, token it predicts)
        for row, prompt in enumerate(prompts):
            first = _FIRST_ROW + row * len(Label)
            sequences = tuple(range(first, first + len(Label)))
            for sequence in sequences:
                context.share(_INSTRUCTION[Task.GRADE], sequence, prompt.n_shared)
            batch += prompt.own_tokens(sequences)
            end_of_prompt = predicted.setdefault(len(batch) - 1, [])
            for number, tokens in enumerate(self._label_tokens.values()):
                end_of_prompt.append((row, number, tokens[0]))
                for offset, (token, following) in enumerate(itertools.pairwise(tokens)):
                    predicted[len(batch)] = [(row, number, following)]
                    batch.append(BatchToken(token, len(prompt.tokens) + offset, (sequences[number],), True))
        scores = np.zeros((len(prompts), len(Label)))
        for places, logits in context.decode_together(batch):
            for place, of_token, total in zip(places, logits, log_sum_exp(logits), strict=True):
                for row, number, token in predicted[place]:
                    scores[row, number] += float(of_token[token]) - float(total)
        for sequence in range(_FIRST_ROW, _FIRST_ROW + len(prompts) * len(Label)):
            context.release(sequence)
        if not np.isfinite(scores).all():
            raise ObserverError(damaged(self._model))
        return [_to_grade(row) for row in scores]


class _Instructed:
    """A context that is opened when it is first needed, and anew when it must be larger."""

    def __init__(
        self,
        model: LlamaModel,
        layout: Layout,
        instructions: Instructions,
        n_rows: int,
        *,
        is_unified: bool,
    ) -> None:
        self._model, self._layout, self._instructions = model, layout, instructions
        self._is_unified = is_unified
        self._flash_attn = not (layout.has_own_cells and is_unified)  # nobody's cells are left out for a lone row
        self._rows = range(_FIRST_ROW, _FIRST_ROW + n_rows)
        self._context: LlamaContext | None = None
        self._instructed: set[Task] = set()
        self.n_cells = 0

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context, self.n_cells, self._instructed = None, 0, set()

    def ready(self, task: Task, n_cells: int) -> LlamaContext:
        """The context with the task's instruction in its cache and nothing of an earlier call.

        It has at least `n_cells`: for all rows together, beside the instructions, or for each where it has its own.
        """
        context = self._context
        if context is None or n_cells > self.n_cells:
            context = self._open(n_cells)
        if task not in self._instructed:
            sequences = (_INSTRUCTION[task],)
            batch = [BatchToken(token, n, sequences) for n, token in enumerate(self._instructions[task])]
            assert not list(context.decode(batch))
            self._instructed.add(task)
        for sequence in self._rows:
            context.release(sequence)  # what an interrupted call left
        return context

    def _open(self, n_cells: int) -> LlamaContext:
        self.close()
        n_instructions = sum(map(len, self._instructions.values())) if self._is_unified else 0
        step = _CELLS_STEP if self._is_unified else _OWN_CELLS_STEP
        n_ctx = -(-(n_cells + n_instructions) // step) * step
        self._context = LlamaContext(
            self._model,
            n_ctx=n_ctx if self._is_unified else n_ctx * self._rows.stop,
            n_seq_max=self._rows.stop,
            n_threads=self._layout.n_threads,
            flash_attn=self._flash_attn,
            is_unified=self._is_unified,
        )
        self.n_cells = n_ctx - n_instructions
        return self._context


def n_cells_to_grade(prompts: Iterable[Prompt], n_at_once: int, n_labels: int) -> int:
    """For the largest batch: `n_labels` are the tokens of all labels together."""
    own = sorted((prompt.n_own for prompt in prompts), reverse=True)[:n_at_once]
    return sum(own) + len(own) * n_labels


def n_cells_to_write(rows: Sequence[Row], layout: Layout) -> int:
    """For the longest row; where rows share them, for as many as go together with answers of the expected length."""
    if layout.has_own_cells:
        return max((len(row.prompt.tokens) + row.room for row in rows), default=0)
    own = sorted((row.prompt.n_own + min(row.room, EXPECTED_ANSWER) for row in rows), reverse=True)
    longest = max((row.prompt.n_own + row.room for row in rows), default=0)
    return max(sum(own[: layout.n_seq]), longest)


def _next(waiting: deque[list[Prompt]]) -> list[Prompt] | None:
    """None when all are taken; another thread may take the last."""
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _to_grade(scores: np.ndarray) -> Grade:
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    labels = list(Label)
    return Grade(labels[int(shares.argmax())], dict(zip(labels, map(float, shares), strict=True)))
