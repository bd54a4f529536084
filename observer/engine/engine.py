"""Batched inference on one GGUF: grade exchanges by the labels' probabilities, extract under the grammar.

Many rows are answered at once in one cache, which is as large as what is in it and holds the instruction once. All is
greedy; the same calls in the same order on the same machine give the same answers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from observer.engine.contexts import ReadingContext, WritingContext
from observer.engine.drafts import Habits
from observer.engine.generation import Generation
from observer.engine.grammar import Grammar
from observer.engine.llama_model import LlamaModel, n_common, usable_cores
from observer.engine.rows import Prompt, Row, completion_of
from observer.errors import ObserverError, RowsError
from observer.observation import EXPECTED_ANSWER, MAX_NEW_TOKENS, Completion, Grade, Progress, Reading, no_progress
from observer.prompts import IM_END, IM_START, NO_EXAMPLES, Examples, Task, render_exchange, render_prompt
from observer.schema import Label, extraction_grammar

_SHORT = 1024
"""Cells of a row that is not worth a context for rows of its length."""
MAX_SEQUENCES = 256
"""llama.cpp's own limit in one context. A row takes one for every label and one to write, beside the instructions'."""


class Engine:
    """One GGUF ready to answer.

    `n_seq` rows are answered at once, on `n_threads` cores (all of them unless given). A row's prompt and answer have
    `n_ctx_per_row` tokens at most, or as many as the model was made for. With `drafts` an extraction under the grammar
    is written several tokens at a time, the same as one by one but for the rounding of other sums. `keep_above`: see
    `grade_of`.
    Raises ObserverError when `path` is missing, cannot be loaded, or holds no model that can answer our prompts.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx_per_row: int | None = None,
        n_seq: int = 16,
        n_threads: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        examples: Examples = NO_EXAMPLES,
        drafts: bool = True,
        keep_above: float | None = None,
    ) -> None:
        self.model = LlamaModel(path)
        self.name = path.stem
        _check_can_answer(self.model)
        self.n_ctx_per_row = min(n_ctx_per_row or self.model.n_ctx_train, self.model.n_ctx_train)
        self.n_threads = n_threads or usable_cores()
        self.max_new_tokens = max_new_tokens
        self._examples, self._keep_above = examples, keep_above
        self._label_tokens = {label: self.model.tokenize(label + IM_END) for label in Label}
        self._instructions = {task: self._instruction_tokens(task) for task in Task}
        self._distinct = list(dict.fromkeys(self._instructions.values()))
        self._n_seq = max(1, min(n_seq, (MAX_SEQUENCES - len(self._distinct)) // (len(Label) + 1)))
        self._reader = ReadingContext(self.model, self._distinct, self._n_seq, len(Label) + 1, self.n_threads)
        self._writer = WritingContext(self.model, self.n_threads)
        self._grammar: Grammar | None = None
        self._drafts = drafts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        for part in (self._grammar, self._reader, self._writer, self.model):
            if part is not None:
                part.close()
        self._grammar = None

    @cached_property
    def room(self) -> int:
        """Tokens of the longest exchange after which a usual answer has room."""
        n_around = max(len(self._tokenize_prompt(task, "")) for task in Task)
        return self.n_ctx_per_row - n_around - min(self.max_new_tokens, EXPECTED_ANSWER)

    def n_tokens(self, exchange: str) -> int:
        """How long a rendered exchange is."""
        return len(self.model.tokenize(exchange))

    def grade(self, exchanges: Sequence[str], progress: Progress = no_progress) -> list[Grade]:
        """Score every label as the whole answer, its end token included, and normalize over the labels.

        `exchanges` are rendered by `prompts.render_exchange`. Raises ObserverError naming each row too long.
        """
        rows = self._rows(exchanges, Task.GRADE, None, 0)
        self._run(rows, None, progress, logprobs=False)
        return [_grade_of(row) for row in rows]

    def extract(
        self,
        exchanges: Sequence[str],
        constrained: bool = True,
        progress: Progress = no_progress,
        *,
        logprobs: bool = False,
    ) -> list[Completion]:
        """Answer the extraction task; `constrained` keeps to the grammar, and to names that were said (`copying`)."""
        grammar = self._extraction_grammar() if constrained else None
        return self.generate(Task.EXTRACT, exchanges, grammar=grammar, progress=progress, logprobs=logprobs)

    def observe(
        self, exchanges: Sequence[str], progress: Progress = no_progress, *, logprobs: bool = False
    ) -> list[Reading]:
        """`grade`, then `extract` unless DISCARD, each exchange being read once for both."""
        rows = self._rows(exchanges, Task.GRADE, Task.EXTRACT, self.max_new_tokens)
        self._run(rows, self._extraction_grammar(), progress, logprobs=logprobs)
        grades = [_grade_of(row) for row in rows]
        return [
            Reading(grade, None if grade.label is Label.DISCARD else completion_of(row, self.model, logprobs))
            for row, grade in zip(rows, grades, strict=True)
        ]

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
        rows = self._rows(exchanges, None, task, max_new_tokens or self.max_new_tokens)
        self._run(rows, grammar, progress, logprobs=logprobs)
        return [completion_of(row, self.model, logprobs) for row in rows]

    def _run(self, rows: Sequence[Row], grammar: Grammar | None, progress: Progress, *, logprobs: bool) -> None:
        """Answer the rows. Long ones go first: the last ones to end are short."""
        n_label_tokens = sum(map(len, self._label_tokens.values()))
        to_read = sorted((row.n_to_read(n_label_tokens) for row in rows), reverse=True)[: self._n_seq]
        reader = self._reader.ready(sum(to_read), max(to_read, default=0))
        n_done = 0
        try:
            for n_cells, alike in _by_length(rows):
                n_rows = min(self._n_seq, len(alike), reader.n_writing(n_cells))
                generation = Generation(
                    self.model,
                    reader,
                    self._writer.ready(n_rows, n_cells),
                    deque(alike),
                    label_tokens=self._label_tokens,
                    grammar=grammar,
                    habits=self.habits if grammar and self._drafts else None,
                    wants_logprobs=logprobs,
                    keep_above=self._keep_above,
                )
                for ended in generation.run():
                    for _ in ended:
                        n_done += 1
                        progress(n_done, len(rows))
        finally:
            for row in rows:
                row.close()

    def _rows(self, exchanges: Sequence[str], graded: Task | None, written: Task | None, budget: int) -> list[Row]:
        """Raises RowsError naming each exchange that is too long."""
        rows: list[Row] = []
        faults: dict[int, str] = {}
        n_label = max(map(len, self._label_tokens.values()))
        for index, exchange in enumerate(exchanges):
            to_grade = self._prompt(graded, exchange) if graded else None
            to_write = self._prompt(written, exchange) if written else None
            n_prompts = [(len(prompt.tokens), n) for prompt, n in ((to_grade, n_label), (to_write, 1)) if prompt]
            n_prompt, n_new = max(n_prompts, key=sum)
            if n_prompt + n_new > self.n_ctx_per_row:
                faults[index] = self._too_long(n_prompt, n_new)
            room = min(budget, self.n_ctx_per_row - len(to_write.tokens)) if to_write else 0
            rows.append(Row(index, to_grade, to_write, room, exchange))
        if faults:
            raise RowsError(faults)
        return rows

    def _too_long(self, n_prompt: int, n_new: int) -> str:
        n_ctx, n_own = self.n_ctx_per_row, self.model.n_ctx_train
        context = f"context: {n_ctx:,}" if n_ctx == n_own else f"context: {n_ctx:,} of the model's {n_own:,}"
        return (
            f"its prompt has {n_prompt:,} tokens, room for {n_ctx - n_new:,} ({context}, answer: {n_new}); "
            "shorten the exchange"
        )

    def _prompt(self, task: Task, exchange: str) -> Prompt:
        instruction, tokens = self._instructions[task], self._tokenize_prompt(task, exchange)
        n_shared = min(n_common(instruction, tokens), len(tokens) - 1)
        return Prompt(tokens, self._distinct.index(instruction), n_shared)

    @cached_property
    def habits(self) -> Habits:
        """What drafts are made from, and how many of their tokens were accepted."""
        return Habits(self.model)

    def _extraction_grammar(self) -> Grammar:
        if self._grammar is None:
            self._grammar = Grammar(self.model, extraction_grammar())
        return self._grammar

    def _tokenize_prompt(self, task: Task, exchange: str) -> list[int]:
        return self.model.tokenize(render_prompt(task, exchange, self._examples.get(task, ())))

    def _instruction_tokens(self, task: Task) -> tuple[int, ...]:
        """What the prompts of a task begin with: tokens, since a string prefix may end within one."""
        one, other = (self._tokenize_prompt(task, render_exchange(text, "")) for text in ("a", "b"))
        return tuple(one[: n_common(one, other)])


def _by_length(rows: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    """The longest rows first, each with those of up to half its length, and the cells that the longest of them needs:
    beside one long row there would be memory for few others.
    """
    ordered = sorted(rows, key=lambda row: (-row.n_to_write, -row.n_to_read(0), row.index))
    for _, alike in itertools.groupby(ordered, key=lambda row: (row.n_to_write // _SHORT).bit_length()):
        found = list(alike)
        yield found[0].n_to_write, found


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


def _grade_of(row: Row) -> Grade:
    assert row.grade is not None, "a row that is to be graded ends with a grade"
    return row.grade
