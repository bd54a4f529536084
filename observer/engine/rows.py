"""One exchange on its way to its answers: what is asked of it, what it has got, and what of it is in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from observer.engine.drafts import Drafts
from observer.engine.grammar import Grammar
from observer.engine.llama_model import LlamaModel
from observer.observation import EXPECTED_ANSWER, Completion, Grade


@dataclass(frozen=True)
class Prompt:
    """Tokens, the first `n_shared` of which the sequence `instruction` of the cache holds for all rows."""

    tokens: Sequence[int]
    instruction: int
    n_shared: int

    @property
    def n_own(self) -> int:
        return len(self.tokens) - self.n_shared


@dataclass
class Row:
    """A row is graded by its prompt `to_grade`, then writes at most `room` tokens after `to_write`; either may be None.

    `exchange` is the text that both are about, and what the answer's names are copied from.
    `forced` are the next tokens of its answer, whatever the model says, where `repeated` made its list end.
    While it is at work it has `sequences` of the cache, and the first of them holds `n_held` tokens of its text.
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
    sequences: Sequence[int] = ()
    n_held: int = 0
    has_ended: bool = False
    repeated: bool = False
    forced: list[int] = field(default_factory=list)

    @property
    def is_to_be_graded(self) -> bool:
        return self.to_grade is not None and self.grade is None

    @property
    def prompt(self) -> Prompt:
        """Of what comes next."""
        prompt = self.to_grade if self.is_to_be_graded else self.to_write
        assert prompt is not None
        return prompt

    @property
    def text(self) -> list[int]:
        """The prompt and the answer so far."""
        return [*self.prompt.tokens, *self.tokens]

    @property
    def n_left(self) -> int:
        """Tokens of its text that the cache does not hold yet."""
        return len(self.prompt.tokens) + len(self.tokens) - self.n_held

    @property
    def n_own(self) -> int:
        """Cells that are this row's alone once its text is decoded."""
        return self.prompt.n_own + len(self.tokens)

    @property
    def n_expected(self) -> int:
        """Cells that a usual answer takes beyond those; a longer one may have to wait for others to end."""
        return min(self.room - len(self.tokens), EXPECTED_ANSWER)

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
