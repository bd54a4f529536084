"""Batched inference on one GGUF: grade exchanges by the labels' probabilities, extract under the grammar.

Every prompt of a task begins with the same instruction: it is decoded once, kept in the KV cache, and
shared by the sequences of a batch. Sequences are decoded together and refilled as they end. All is greedy;
the same rows in the same order on the same machine give the same answers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from observer.answers import Completion, Grade, Progress, no_progress
from observer.errors import raise_all
from observer.llama import BatchToken, Grammar, LlamaContext, LlamaModel, Logits, usable_cores
from observer.prompts import IM_END, Task, render_exchange, render_prompt
from observer.schema import Label, extraction_grammar

_PREFIX_SEQUENCE = {task: number for number, task in enumerate(Task)}
_FIRST_ROW_SEQUENCE = len(_PREFIX_SEQUENCE)
_MAX_SEQUENCES = 256
_CELLS_STEP = 1024


@dataclass
class _Row:
    """An answer in the making."""

    index: int
    sequence: int
    n_past: int
    budget: int
    grammar: Grammar | None
    tokens: list[int] = field(default_factory=list)


class Engine:
    """One GGUF ready to answer. Raises ObserverError when `path` is missing or cannot be loaded."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx_per_row: int = 1024,
        n_seq: int = 16,
        n_threads: int | None = None,
        max_new_tokens: int = 512,
    ) -> None:
        self.model = LlamaModel(path)
        self.n_ctx_per_row = min(n_ctx_per_row, self.model.n_ctx_train)
        self.n_seq = max(1, min(n_seq, (_MAX_SEQUENCES - _FIRST_ROW_SEQUENCE) // len(Label)))
        self.n_threads = n_threads or usable_cores()
        self.max_new_tokens = max_new_tokens
        self._label_tokens = {label: self.model.tokenize(label + IM_END) for label in Label}
        self._prefixes = {task: self._instruction_tokens(task) for task in Task}
        self._context: LlamaContext | None = None
        self._decoded_prefixes: set[Task] = set()
        self._grammar: Grammar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        for part in (self._grammar, self._context, self.model):
            if part is not None:
                part.close()
        self._grammar = self._context = None

    def grade(self, exchanges: Sequence[str], progress: Progress = no_progress) -> list[Grade]:
        """Score every label as the whole answer, its end token included, and normalize over the labels.

        `exchanges` are rendered by `prompts.render_exchange`. Raises ObserverError naming each row too long.
        """
        longest = max(len(tokens) for tokens in self._label_tokens.values())
        prompts = self._prompts(Task.GRADE, exchanges, longest)
        answers = sum(len(tokens) for tokens in self._label_tokens.values())
        context = self._ready_context(Task.GRADE, prompts, answers)
        grades: list[Grade] = []
        for start in range(0, len(prompts), self.n_seq):
            grades += self._grade_batch(context, prompts[start : start + self.n_seq])
            progress(len(grades), len(prompts))
        return grades

    def extract(
        self, exchanges: Sequence[str], constrained: bool = True, progress: Progress = no_progress
    ) -> list[Completion]:
        """Answer the extraction task; `constrained` keeps every answer within the schema's grammar."""
        if not constrained:
            return self.generate(Task.EXTRACT, exchanges, progress=progress)
        if self._grammar is None:
            self._grammar = Grammar(self.model, extraction_grammar())
        return self.generate(Task.EXTRACT, exchanges, grammar=self._grammar, progress=progress)

    def generate(
        self,
        task: Task,
        exchanges: Sequence[str],
        *,
        grammar: Grammar | None = None,
        max_new_tokens: int | None = None,
        progress: Progress = no_progress,
    ) -> list[Completion]:
        """Greedy answers. A prompt that nearly fills the row's context gets what room is left."""
        budget = max_new_tokens or self.max_new_tokens
        prompts = self._prompts(task, exchanges, 1)
        context = self._ready_context(task, prompts, budget)
        waiting = deque(enumerate(prompts))
        free = deque(range(_FIRST_ROW_SEQUENCE, _FIRST_ROW_SEQUENCE + self.n_seq))
        active: list[_Row] = []
        done: dict[int, Completion] = {}
        while waiting or active:
            batch = [BatchToken(row.tokens[-1], row.n_past, (row.sequence,), True) for row in active]
            owners = dict(enumerate(active))
            while waiting and free:
                index, prompt = waiting.popleft()
                room = min(budget, self.n_ctx_per_row - len(prompt))
                row = _Row(index, free.popleft(), len(prompt) - 1, room, grammar.start() if grammar else None)
                batch += self._admit(context, task, prompt, (row.sequence,))
                owners[len(batch) - 1] = row
            for position, logits in context.decode(batch):
                row = owners[position]
                row.n_past += 1
                completion = self._advance(row, logits)
                if completion is not None:
                    done[row.index] = completion
                    context.clear(row.sequence)
                    free.append(row.sequence)
                    progress(len(done), len(prompts))
            active = [row for row in owners.values() if row.index not in done]
        return [done[index] for index in range(len(prompts))]

    def _advance(self, row: _Row, logits: Logits) -> Completion | None:
        """Choose the row's next token; return the answer when it is the last."""
        token = row.grammar.best(logits) if row.grammar else int(logits.argmax())
        has_ended = self.model.is_end(token)
        if not has_ended:
            row.tokens.append(token)
            if len(row.tokens) < row.budget:
                if row.grammar:
                    row.grammar.accept(token)
                return None
        if row.grammar:
            row.grammar.close()
        return Completion(self.model.detokenize(row.tokens), tuple(row.tokens), truncated=not has_ended)

    def _grade_batch(self, context: LlamaContext, prompts: Sequence[list[int]]) -> list[Grade]:
        """Decode each prompt once, with its labels as branches of it, all in one batch."""
        batch: list[BatchToken] = []
        predicted: dict[int, list[tuple[int, int, int]]] = {}  # batch index -> (row, label, token it predicts)
        n_labels = len(Label)
        for row, prompt in enumerate(prompts):
            first = _FIRST_ROW_SEQUENCE + row * n_labels
            sequences = tuple(range(first, first + n_labels))
            batch += self._admit(context, Task.GRADE, prompt, sequences)
            end_of_prompt = predicted.setdefault(len(batch) - 1, [])
            for number, tokens in enumerate(self._label_tokens.values()):
                end_of_prompt.append((row, number, tokens[0]))
                for offset, (token, following) in enumerate(itertools.pairwise(tokens)):
                    predicted[len(batch)] = [(row, number, following)]
                    batch.append(BatchToken(token, len(prompt) + offset, (sequences[number],), True))
        scores = np.zeros((len(prompts), n_labels))
        for position, logits in context.decode(batch):
            log_total = _log_sum_exp(logits)
            for row, number, token in predicted[position]:
                scores[row, number] += float(logits[token]) - log_total
        for sequence in range(_FIRST_ROW_SEQUENCE, _FIRST_ROW_SEQUENCE + len(prompts) * n_labels):
            context.clear(sequence)
        return [_to_grade(row) for row in scores]

    def _admit(
        self, context: LlamaContext, task: Task, prompt: list[int], sequences: tuple[int, ...]
    ) -> list[BatchToken]:
        """Give the sequences the cached instruction; return what is left of the prompt to decode."""
        shared = self._n_shared(task, prompt)
        for sequence in sequences:
            context.copy_prefix(_PREFIX_SEQUENCE[task], sequence, shared)
        last = len(prompt) - 1
        return [BatchToken(prompt[n], n, sequences, n == last) for n in range(shared, len(prompt))]

    def _n_shared(self, task: Task, prompt: list[int]) -> int:
        return min(_n_common(self._prefixes[task], prompt), len(prompt) - 1)

    def _prompts(self, task: Task, exchanges: Sequence[str], n_new: int) -> list[list[int]]:
        prompts = [self.model.tokenize(render_prompt(task, exchange)) for exchange in exchanges]
        room = self.n_ctx_per_row - n_new
        raise_all(
            [
                f"row {index}: its prompt has {len(prompt):,} tokens, room for {room:,} (context of a row: "
                f"{self.n_ctx_per_row:,}, answer: {n_new}); shorten the exchange or raise n_ctx_per_row"
                for index, prompt in enumerate(prompts)
                if len(prompt) > room
            ]
        )
        return prompts

    def _ready_context(self, task: Task, prompts: Sequence[list[int]], n_new: int) -> LlamaContext:
        """A context with room for `n_seq` of the longest rows and the task's instruction in its cache."""
        longest = max((len(prompt) - self._n_shared(task, prompt) for prompt in prompts), default=0)
        cells = sum(map(len, self._prefixes.values())) + min(self.n_seq, len(prompts)) * (longest + n_new)
        if self._context is None or self._context.n_ctx < cells:
            if self._context is not None:
                self._context.close()
            n_seq_max = _FIRST_ROW_SEQUENCE + self.n_seq * len(Label)
            n_ctx = -(-cells // _CELLS_STEP) * _CELLS_STEP
            self._context = LlamaContext(self.model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_threads=self.n_threads)
            self._decoded_prefixes = set()
        if task not in self._decoded_prefixes:
            sequences = (_PREFIX_SEQUENCE[task],)
            batch = [BatchToken(token, n, sequences) for n, token in enumerate(self._prefixes[task])]
            assert not list(self._context.decode(batch))
            self._decoded_prefixes.add(task)
        for sequence in range(_FIRST_ROW_SEQUENCE, _FIRST_ROW_SEQUENCE + self.n_seq * len(Label)):
            self._context.clear(sequence)  # what an interrupted call left
        return self._context

    def _instruction_tokens(self, task: Task) -> list[int]:
        """What the prompts of a task begin with: tokens, since a string prefix may end within one."""
        one, other = (self.model.tokenize(render_prompt(task, render_exchange(text, ""))) for text in ("a", "b"))
        return one[: _n_common(one, other)]


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _log_sum_exp(logits: Logits) -> float:
    highest = float(logits.max())
    return highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def _to_grade(scores: np.ndarray) -> Grade:
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    labels = list(Label)
    return Grade(labels[int(shares.argmax())], dict(zip(labels, map(float, shares), strict=True)))
