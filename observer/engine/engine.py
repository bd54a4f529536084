"""Batched inference on one GGUF: grade exchanges by the labels' probabilities, extract under the grammar.

Many rows are answered at once in one cache, which is as large as what is in it and holds the instruction once. All is
greedy; the same rows in the same order on the same machine give the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from observer.engine.decode_worker import DecodeWorker
from observer.engine.generation import Prompt, Row, completion_of
from observer.engine.grammar import Grammar
from observer.engine.llama_model import LlamaModel, n_common, usable_cores
from observer.errors import ObserverError, RowsError
from observer.observation import Completion, Grade, Progress, no_progress
from observer.prompts import IM_END, IM_START, NO_EXAMPLES, Examples, Task, render_exchange, render_prompt
from observer.schema import Label, extraction_grammar

MAX_SEQUENCES = 256
"""llama.cpp's own limit in one context. A row that is graded takes one for every label, beside the instructions'."""


class Engine:
    """One GGUF ready to answer.

    `n_seq` rows are answered at once, on `n_threads` cores (all of them unless given).
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
        examples: Examples = NO_EXAMPLES,
    ) -> None:
        self.model = LlamaModel(path)
        self.name = path.stem
        _check_can_answer(self.model)
        self.n_ctx_per_row = min(n_ctx_per_row, self.model.n_ctx_train)
        self.n_threads = n_threads or usable_cores()
        self.max_new_tokens = max_new_tokens
        self._examples = examples
        self._label_tokens = {label: self.model.tokenize(label + IM_END) for label in Label}
        self._instructions = {task: self._instruction_tokens(task) for task in Task}
        self._worker = DecodeWorker(
            self.model,
            self._instructions,
            self._label_tokens,
            n_seq=max(1, min(n_seq, MAX_SEQUENCES // len(Label) - 1)),
            n_threads=self.n_threads,
        )
        self._grammar: Grammar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        for part in (self._grammar, self._worker, self.model):
            if part is not None:
                part.close()
        self._grammar = None

    def grade(self, exchanges: Sequence[str], progress: Progress = no_progress) -> list[Grade]:
        """Score every label as the whole answer, its end token included, and normalize over the labels.

        `exchanges` are rendered by `prompts.render_exchange`. Raises ObserverError naming each row too long.
        """
        longest = max(len(tokens) for tokens in self._label_tokens.values())
        prompts = self._prompts(Task.GRADE, exchanges, longest)
        grades: dict[int, Grade] = {}
        for found in self._worker.grade(sorted(prompts, key=_longest_first)):
            grades.update(found)
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
        rows = [Row(prompt, min(budget, self.n_ctx_per_row - len(prompt.tokens))) for prompt in prompts]
        order = sorted(rows, key=lambda row: _longest_first(row.prompt))
        n_done = 0
        try:
            for ended in self._worker.write(task, order, grammar=grammar, logprobs=logprobs):
                for _ in ended:
                    n_done += 1
                    progress(n_done, len(rows))
        finally:
            for row in rows:
                row.close()
        return [completion_of(row, self.model, logprobs) for row in rows]

    def _prompts(self, task: Task, exchanges: Sequence[str], n_new: int) -> list[Prompt]:
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
        return [Prompt(index, prompt, self._n_shared(task, prompt)) for index, prompt in enumerate(prompts)]

    def _n_shared(self, task: Task, prompt: list[int]) -> int:
        return min(n_common(self._instructions[task], prompt), len(prompt) - 1)

    def _tokenize_prompt(self, task: Task, exchange: str) -> list[int]:
        return self.model.tokenize(render_prompt(task, exchange, self._examples.get(task, ())))

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


def _longest_first(prompt: Prompt) -> tuple[int, int]:
    """Long prompts go first: the last ones to end are short."""
    return -len(prompt.tokens), prompt.index
