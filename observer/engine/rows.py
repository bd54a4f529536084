"""One exchange on its way to its answers: what is asked of it, what it has got, and what of it is in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from observer.engine.drafts import Drafts
from observer.engine.grammar import Grammar
from observer.engine.llama_model import LlamaModel, n_common
from observer.observation import Completion, Grade
from observer.schema import Label


@dataclass(frozen=True)
class Prompt:
    """Tokens, the first `n_shared` of which the sequence `instruction` of the cache holds for all rows."""

    tokens: Sequence[int]
    instruction: int
    n_shared: int

    @property
    def n_own(self) -> int:
        return len(self.tokens) - self.n_shared


@dataclass(eq=False)
class Row:
    """A row is graded by its prompt `to_grade`, then writes at most `room` tokens after `to_write`; either may be None.

    `exchange` is the text that both are about, and what the answer's names are copied from.
    `forced` are the next tokens of its answer, whatever the model says, where `repeated` made its list end.
    While it is at work `sequence` of a cache is its own and holds `n_held` tokens of its text.
    """

    index: int
    to_grade: Prompt | None
    to_write: Prompt | None
    room: int
    exchange: str
    grade: Grade | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    grammar: Grammar | None = None
    drafts: Drafts | None = None
    sequence: int = -1
    n_held: int = 0
    has_ended: bool = False
    repeated: bool = False
    forced: list[int] = field(default_factory=list)

    @property
    def text(self) -> list[int]:
        """The prompt to write after, and the answer so far."""
        assert self.to_write is not None
        return [*self.to_write.tokens, *self.tokens]

    @property
    def n_text(self) -> int:
        assert self.to_write is not None
        return len(self.to_write.tokens) + len(self.tokens)

    @property
    def is_to_be_written(self) -> bool:
        """Whether it has an answer to write, as far as is known."""
        return self.to_write is not None and (self.grade is None or self.grade.label is not Label.DISCARD)

    @cached_property
    def n_both(self) -> int:
        """Tokens that both prompts begin with."""
        if self.to_grade is None or self.to_write is None or self.to_grade.instruction != self.to_write.instruction:
            return 0
        return n_common(self.to_grade.tokens, self.to_write.tokens)

    def n_to_read(self, n_label_tokens: int) -> int:
        """Cells that are this row's alone while it is read: those of its prompts and of the labels."""
        n_graded = self.to_grade.n_own + n_label_tokens if self.to_grade else 0
        n_shared = max(self.n_both, self.to_write.n_shared) if self.to_write else 0
        return n_graded + (len(self.to_write.tokens) - n_shared if self.to_write else 0)

    @property
    def n_to_write(self) -> int:
        """Cells of its longest answer and the prompt of it; none for a row that is only graded."""
        return len(self.to_write.tokens) + self.room if self.to_write else 0

    def close(self) -> None:
        if self.grammar:
            self.grammar.close()


def completion_of(row: Row, model: LlamaModel, has_logprobs: bool) -> Completion:
    """The row's answer as its caller gets it."""
    return Completion(
        model.detokenize(row.tokens),
        tuple(row.tokens),
        truncated=not row.has_ended,
        logprobs=tuple(row.logprobs) if has_logprobs else None,
        repeated=row.repeated,
    )
