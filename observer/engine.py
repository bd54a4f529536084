"""Batched inference on one GGUF: grade exchanges by the labels' probabilities, extract under the grammar.

Every prompt of a task begins with the same instruction: it is decoded once, kept in the KV cache, and
shared by the sequences of a batch. Sequences are decoded together and refilled as they end. All is greedy;
the same rows in the same order on the same machine give the same answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from observer.answers import Completion, Grade, Progress, no_progress
from observer.errors import ObserverError, RowsError
from observer.generation import EXPECTED_ANSWER, Generation, Row, damaged, log_sum_exp
from observer.grammar import Grammar
from observer.llama import BatchToken, LlamaContext, LlamaModel, n_common, usable_cores
from observer.prompts import IM_END, IM_START, NO_EXAMPLES, Examples, Task, render_exchange, render_prompt
from observer.schema import Label, extraction_grammar

_PREFIX_SEQUENCE = {task: number for number, task in enumerate(Task)}
_FIRST_ROW_SEQUENCE = len(_PREFIX_SEQUENCE)
_MAX_SEQUENCES = 256
_CELLS_STEP = 1024


class Engine:
    """One GGUF ready to answer.

    Raises ObserverError when `path` is missing, cannot be loaded, or holds no model that can answer our prompts.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx_per_row: int = 1024,
        n_seq: int = 16,
        n_threads: int | None = None,
        max_new_tokens: int = 512,
        flash_attn: bool = True,
        examples: Examples = NO_EXAMPLES,
    ) -> None:
        self.model = LlamaModel(path)
        self.name = path.stem
        _check_can_answer(self.model)
        self.n_ctx_per_row = min(n_ctx_per_row, self.model.n_ctx_train)
        self.n_seq = max(1, min(n_seq, (_MAX_SEQUENCES - _FIRST_ROW_SEQUENCE) // len(Label)))
        self.n_threads = n_threads or usable_cores()
        self.max_new_tokens = max_new_tokens
        self.flash_attn = flash_attn
        self._examples = examples
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
        context = self._ready_context(Task.GRADE, prompts, answers, answers)
        order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
        grades: dict[int, Grade] = {}
        for start in range(0, len(order), self.n_seq):
            chosen = order[start : start + self.n_seq]
            grades.update(zip(chosen, self._grade_batch(context, [prompts[index] for index in chosen]), strict=True))
            progress(len(grades), len(prompts))
        return [grades[index] for index in range(len(prompts))]

    def extract(
        self,
        exchanges: Sequence[str],
        constrained: bool = True,
        progress: Progress = no_progress,
        *,
        logprobs: bool = False,
    ) -> list[Completion]:
        """Answer the extraction task; `constrained` keeps every answer within the schema's grammar."""
        if constrained and self._grammar is None:
            self._grammar = Grammar(self.model, extraction_grammar())
        grammar = self._grammar if constrained else None
        return self.generate(Task.EXTRACT, exchanges, grammar=grammar, progress=progress, logprobs=logprobs)

    def generate(
        self,
        task: Task,
        exchanges: Sequence[str],
        *,
        grammar: Grammar | None = None,
        max_new_tokens: int | None = None,
        progress: Progress = no_progress,
        logprobs: bool = False,
    ) -> list[Completion]:
        """Greedy answers. A prompt that nearly fills the row's context gets what room is left."""
        budget = max_new_tokens or self.max_new_tokens
        prompts = self._prompts(task, exchanges, 1)
        context = self._ready_context(task, prompts, budget, EXPECTED_ANSWER)
        rows = [
            Row(index, prompt, self._n_shared(task, prompt), min(budget, self.n_ctx_per_row - len(prompt)))
            for index, prompt in enumerate(prompts)
        ]
        generation = Generation(
            self.model,
            context,
            prefix=_PREFIX_SEQUENCE[task],
            sequences=range(_FIRST_ROW_SEQUENCE, _FIRST_ROW_SEQUENCE + self.n_seq),
            n_cells=context.n_ctx - self._n_prefix_cells,
        )
        return generation.run(rows, grammar, logprobs, progress)

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
            log_total = log_sum_exp(logits)
            for row, number, token in predicted[position]:
                scores[row, number] += float(logits[token]) - log_total
        for sequence in range(_FIRST_ROW_SEQUENCE, _FIRST_ROW_SEQUENCE + len(prompts) * n_labels):
            context.clear(sequence)
        if not np.isfinite(scores).all():
            raise ObserverError(damaged(self.model))
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
        return min(n_common(self._prefixes[task], prompt), len(prompt) - 1)

    def _prompts(self, task: Task, exchanges: Sequence[str], n_new: int) -> list[list[int]]:
        prompts = [self._tokenize_prompt(task, exchange) for exchange in exchanges]
        room = self.n_ctx_per_row - n_new
        faults = {
            index: f"its prompt has {len(prompt):,} tokens, room for {room:,} (context of a row: "
            f"{self.n_ctx_per_row:,}, answer: {n_new}); shorten the exchange or raise n_ctx_per_row"
            for index, prompt in enumerate(prompts)
            if len(prompt) > room
        }
        if faults:
            raise RowsError(faults)
        return prompts

    def _tokenize_prompt(self, task: Task, exchange: str) -> list[int]:
        return self.model.tokenize(render_prompt(task, exchange, self._examples.get(task, ())))

    def _ready_context(self, task: Task, prompts: Sequence[list[int]], n_new: int, n_expected: int) -> LlamaContext:
        """A context with the task's instruction in its cache, and room for the longest rows.

        That is for `n_seq` of them with answers of `n_expected` tokens, and for one alone with `n_new`.
        """
        own = sorted((len(prompt) - self._n_shared(task, prompt) for prompt in prompts), reverse=True)[: self.n_seq]
        together = sum(own) + len(own) * min(n_new, n_expected)
        cells = self._n_prefix_cells + max(together, own[0] + n_new if own else 0)
        if self._context is None or self._context.n_ctx < cells:
            self._open_context(-(-cells // _CELLS_STEP) * _CELLS_STEP)
        assert self._context is not None
        if task not in self._decoded_prefixes:
            sequences = (_PREFIX_SEQUENCE[task],)
            batch = [BatchToken(token, n, sequences) for n, token in enumerate(self._prefixes[task])]
            assert not list(self._context.decode(batch))
            self._decoded_prefixes.add(task)
        for sequence in range(_FIRST_ROW_SEQUENCE, _FIRST_ROW_SEQUENCE + self.n_seq * len(Label)):
            self._context.clear(sequence)  # what an interrupted call left
        return self._context

    def _open_context(self, n_ctx: int) -> None:
        n_seq_max = _FIRST_ROW_SEQUENCE + self.n_seq * len(Label)
        if self._context is not None:
            self._context.close()
        self._context = LlamaContext(
            self.model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_threads=self.n_threads, flash_attn=self.flash_attn
        )
        self._decoded_prefixes = set()

    @property
    def _n_prefix_cells(self) -> int:
        return sum(map(len, self._prefixes.values()))

    def _instruction_tokens(self, task: Task) -> list[int]:
        """What the prompts of a task begin with: tokens, since a string prefix may end within one."""
        one, other = (self._tokenize_prompt(task, render_exchange(text, "")) for text in ("a", "b"))
        return one[: n_common(one, other)]


def _check_can_answer(model: LlamaModel) -> None:
    """Raise ObserverError for a model without ChatML's tokens, or with states that cannot share an instruction."""
    missing = [marker for marker in (IM_START, IM_END) if len(model.tokenize(marker)) != 1]
    if missing:
        kind = model.metadata("general.architecture") or "unknown"
        raise ObserverError(
            f"{model.path}: its vocabulary (architecture {kind}) has no token {' and no '.join(missing)}; "
            "our prompts are ChatML, so take a model that speaks it"
        )
    if model.is_recurrent:
        raise ObserverError(
            f"{model.path}: a recurrent model keeps no cells that rows could share; take one with attention alone"
        )


def _to_grade(scores: np.ndarray) -> Grade:
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    labels = list(Label)
    return Grade(labels[int(shares.argmax())], dict(zip(labels, map(float, shares), strict=True)))
