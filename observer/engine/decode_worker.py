"""The context that rows are decoded in, with each task's instruction in its cache.

Every prompt of a task begins with the same instruction: it is decoded once and shared by the sequences of the context.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Mapping, Sequence

import numpy as np

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
_CELLS_STEP = 1024
"""The cache grows by so many cells, since opening it anew decodes the instructions again."""

Instructions = Mapping[Task, Sequence[int]]
"""The tokens with which every prompt of a task begins."""


class DecodeWorker:
    """Grades and writes `n_seq` rows at a time, on `n_threads`."""

    def __init__(
        self,
        model: LlamaModel,
        instructions: Instructions,
        label_tokens: Mapping[Label, Sequence[int]],
        *,
        n_seq: int,
        n_threads: int,
    ) -> None:
        self._model, self._label_tokens, self._n_seq = model, label_tokens, n_seq
        self.context = _Instructed(model, instructions, n_seq * len(Label), n_threads)

    def close(self) -> None:
        self.context.close()

    def grade(self, prompts: Sequence[Prompt]) -> Generator[list[tuple[int, Grade]]]:
        """Yield the grades of one batch after the other, with the rows' indices."""
        n_labels = sum(map(len, self._label_tokens.values()))
        own = sorted((prompt.n_own + n_labels for prompt in prompts), reverse=True)
        context = self.context.ready(Task.GRADE, sum(own[: self._n_seq]))
        for start in range(0, len(prompts), self._n_seq):
            batch = prompts[start : start + self._n_seq]
            yield list(zip((prompt.index for prompt in batch), self._grade_batch(context, batch), strict=True))

    def write(
        self, task: Task, rows: Sequence[Row], *, grammar: Grammar | None, logprobs: bool
    ) -> Generator[list[Row]]:
        """Yield the rows that end, step by step. The cells are enough for the longest, or for many usual ones."""
        own = sorted((row.prompt.n_own + min(row.room, EXPECTED_ANSWER) for row in rows), reverse=True)
        longest = max((row.prompt.n_own + row.room for row in rows), default=0)
        context = self.context.ready(task, max(sum(own[: self._n_seq]), longest))
        generation = Generation(
            self._model,
            context,
            deque(rows),
            instruction=_INSTRUCTION[task],
            sequences=range(_FIRST_ROW, _FIRST_ROW + self._n_seq),
            n_cells=self.context.n_cells,
            wants_logprobs=logprobs,
        )
        yield from generation.run(grammar)

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

    def __init__(self, model: LlamaModel, instructions: Instructions, n_rows: int, n_threads: int) -> None:
        self._model, self._instructions, self._n_threads = model, instructions, n_threads
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

        It has at least `n_cells` for all rows together, beside the instructions.
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
        n_instructions = sum(map(len, self._instructions.values()))
        n_ctx = -(-(n_cells + n_instructions) // _CELLS_STEP) * _CELLS_STEP
        self._context = LlamaContext(
            self._model, n_ctx=n_ctx, n_seq_max=self._rows.stop, n_threads=self._n_threads, flash_attn=True
        )
        self.n_cells = n_ctx - n_instructions
        return self._context


def _to_grade(scores: np.ndarray) -> Grade:
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    labels = list(Label)
    return Grade(labels[int(shares.argmax())], dict(zip(labels, map(float, shares), strict=True)))
