"""The ways to answer exchanges with one GGUF that the engine's benchmark compares.

Each is greedy, uses all cores, and may write the same number of tokens. A label written out may take as many tokens as
the longest label and its end; an extraction as many as the benchmark allows.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from llama_cpp import Llama, LlamaGrammar

from observer.engine.engine import Engine
from observer.observation import Completion, Grade
from observer.prompts import Task, prompt_messages
from observer.schema import Label, extraction_json_schema

CONTEXT_TOKENS = 2048
"""Of one exchange and its answer, in every contestant but ours, which takes what a row needs: all shipped rows fit."""


@dataclass(frozen=True)
class Limits:
    """Tokens an answer may have, by task, and the threads of all contestants."""

    label_tokens: int
    extract_tokens: int
    n_threads: int
    n_seq: int

    def of(self, task: Task) -> int:
        return self.label_tokens if task is Task.GRADE else self.extract_tokens


@dataclass
class Turn:
    """One round of one contestant: seconds by task, answers in the rows' order, tokens written.

    `work` is known of the engine alone: tokens decoded, and those with logits.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(map(str, Task), 0.0))
    answers: dict[str, list[str]] = field(default_factory=lambda: {str(task): [] for task in Task})
    n_written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Task), 0))
    work: dict[str, tuple[int, int]] = field(default_factory=dict)


Rows = dict[Task, Sequence[str]]
"""The rendered exchanges of each task."""


class Contestant(Protocol):
    def answer(self, rows: Rows) -> Turn: ...

    def close(self) -> None: ...


class Ours:
    """`observer.engine.engine`; grading scores the labels, extraction is kept to the grammar."""

    def __init__(self, model: Path, limits: Limits, *, drafts: bool = True) -> None:
        n_threads, n_seq, n_new = limits.n_threads, limits.n_seq, limits.extract_tokens
        self.engine = Engine(model, n_threads=n_threads, n_seq=n_seq, max_new_tokens=n_new, drafts=drafts)

    def answer(self, rows: Rows) -> Turn:
        turn, model = Turn(), self.engine.model
        for task in Task:
            n_decoded, n_outputs = model.n_decoded, model.n_outputs
            with timed(turn, task):
                answers = self.engine.grade(rows[task]) if task is Task.GRADE else self.engine.extract(rows[task])
            turn.work[task] = (model.n_decoded - n_decoded, model.n_outputs - n_outputs)
            turn.answers[task] = [str(one.label) if isinstance(one, Grade) else one.text for one in answers]
            turn.n_written[task] = sum(one.n_tokens for one in answers if isinstance(one, Completion))
        return turn

    def close(self) -> None:
        self.engine.close()


class ChatCompletion:
    """`Llama.create_chat_completion` in a loop.

    As it is, the tasks change with every call, as where each exchange is graded and then extracted; llama-cpp-python
    then finds next to nothing of the last prompt in the next one. `is_tuned`: a task is done before the other starts,
    so that its own prefix match keeps the instruction, and the JSON schema is a grammar as it makes it, once.
    """

    def __init__(self, model: Path, limits: Limits, *, is_tuned: bool) -> None:
        self.limits, self.is_tuned = limits, is_tuned
        self.llama = Llama(
            str(model),
            n_ctx=CONTEXT_TOKENS,
            n_threads=limits.n_threads,
            n_threads_batch=limits.n_threads,
            verbose=False,
        )
        schema = json.dumps(extraction_json_schema())
        self.grammar = LlamaGrammar.from_json_schema(schema, verbose=False) if is_tuned else None

    def answer(self, rows: Rows) -> Turn:
        turn = Turn()
        self.llama.reset()
        for task, exchange in _in_order(rows, in_turns=not self.is_tuned):
            with timed(turn, task):
                answer: Any = self.llama.create_chat_completion(
                    prompt_messages(task, exchange),  # type: ignore[arg-type]
                    temperature=0.0,
                    max_tokens=self.limits.of(task),
                    grammar=self.grammar if task is Task.EXTRACT else None,
                )
            turn.answers[task].append(answer["choices"][0]["message"]["content"])
            turn.n_written[task] += answer["usage"]["completion_tokens"]
        return turn

    def close(self) -> None:
        self.llama.close()


SERVER = "llama-server"
TITLES = {
    "ours": "observer.engine.engine",
    "ours-undrafted": "the same without drafts, one token a step",
    "chat": "(a) create_chat_completion, exchange by exchange, no grammar",
    "chat-cached": "(b) create_chat_completion, task by task (its prefix match holds), JSON-schema grammar",
    SERVER: "(c) llama.cpp's own server, a slot for each sequence, asked concurrently",
}
"""The contestants by name, in the order of the report."""


def as_label(text: str) -> str | None:
    """The label a chat answer stands for; None for anything else."""
    return next((str(label) for label in Label if label == text.strip()), None)


def as_json(text: str) -> Any:
    """An extraction without its spacing, so that two writings of one answer are equal; other text as it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _in_order(rows: Rows, *, in_turns: bool) -> Iterator[tuple[Task, str]]:
    if not in_turns:
        yield from ((task, exchange) for task in Task for exchange in rows[task])
        return
    for exchanges in zip_longest(*(rows[task] for task in Task)):
        yield from ((task, text) for task, text in zip(Task, exchanges, strict=True) if text is not None)


@contextlib.contextmanager
def timed(turn: Turn, task: Task) -> Iterator[None]:
    """Add the seconds of the body to the task's."""
    start = time.perf_counter()
    yield
    turn.seconds[task] += time.perf_counter() - start
