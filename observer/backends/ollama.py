"""An Ollama model as a backend: several questions at once, from any number of callers.

Ollama tells no more than the 20 likeliest tokens at each place, so the labels' probabilities are the shares of the
tokens with which they begin (no two labels begin alike); the engine in this process scores whole labels.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any, Self, TypeVar

from observer.backends.request_bodies import KEPT_LABEL_TOKENS, LABEL_TOKENS, ollama_chat_body, ollama_grading
from observer.errors import ObserverError, RowsError
from observer.observation import MAX_NEW_TOKENS, Completion, Grade, Progress, grade_of, no_progress
from observer.ollama.chat import Reply, TokenChoice, reply_of
from observer.ollama.client import OllamaClient, Patience, TooLong
from observer.prompts import IM_END, NO_EXAMPLES, Examples, Task
from observer.schema import Label, extraction_json_schema

T = TypeVar("T")
Ask = Callable[[str], Coroutine[Any, Any, T]]
_LABEL_FORMAT = {"type": "string", "enum": [str(label) for label in Label]}


class _NoLabel(Exception):
    """One row's answer is none; the others may be sound."""


class OllamaBackend:
    """`host` as in OLLAMA_HOST, which is the default; nothing is asked before the first row.

    At most `n_parallel` questions are under way, from all callers together.
    """

    def __init__(
        self,
        name: str,
        host: str | None = None,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        n_parallel: int = 4,
        examples: Examples = NO_EXAMPLES,
        patience: Patience | None = None,
        keep_above: float | None = None,
    ) -> None:
        self.name, self.examples, self.max_new_tokens = name, examples, max_new_tokens
        self.keep_above = keep_above
        self._client = OllamaClient(host, patience or Patience(), n_parallel)
        self._portal = self._client.portal
        self.n_parallel, self._limit = n_parallel, asyncio.Semaphore(n_parallel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way and end the thread; a second call does nothing."""
        self._client.close()

    @cached_property
    def digest(self) -> str:
        """What the server calls this very model: `name` may come to mean another."""
        return str(self._listed.get("digest", ""))

    @cached_property
    def served_by(self) -> str:
        """The server and what it calls this very model, such as `Ollama 0.33.0, Q4_K_M, digest 1a2b3c4d5e6f`."""
        kind = (self._listed.get("details") or {}).get("quantization_level")
        digest = f"digest {self.digest.removeprefix('sha256:')[:12]}"
        return ", ".join(filter(None, [f"Ollama {self._client.version()}", kind, digest]))

    @cached_property
    def _listed(self) -> dict[str, Any]:
        return self._client.listed(self.name)

    def grade(self, exchanges: Sequence[str], progress: Progress = no_progress) -> list[Grade]:
        """The label whose first token is likeliest, or the one written where the server tells no probabilities."""
        return self._portal.call(self._all, self._grade_one, exchanges, progress)

    def extract(
        self,
        exchanges: Sequence[str],
        constrained: bool = True,
        progress: Progress = no_progress,
        *,
        logprobs: bool = False,
    ) -> list[Completion]:
        """`constrained` sends the JSON schema as the answer's `format`."""
        more: dict[str, Any] = {"format": extraction_json_schema()} if constrained else {}
        if logprobs:
            more["logprobs"] = True

        async def extract_one(exchange: str) -> Completion:
            reply = await self._ask(Task.EXTRACT, exchange, self.max_new_tokens, more)
            written = [choice.logprob for choice in reply.choices if choice.text not in ("", IM_END)]
            return Completion(reply.content, (), reply.truncated, tuple(written) if written else None)

        return self._portal.call(self._all, extract_one, exchanges, progress)

    async def _grade_one(self, exchange: str) -> Grade:
        """Ask freely, as the model was trained; one that answers something else is kept to the labels."""
        more = ollama_grading()
        reply = await self._ask(Task.GRADE, exchange, LABEL_TOKENS, more)
        label = _label_in(reply.content)
        if label is None:
            reply = await self._ask(Task.GRADE, exchange, KEPT_LABEL_TOKENS, more | {"format": _LABEL_FORMAT})
            label = _label_in(reply.content)
        if label is None:
            raise _NoLabel(f"{self.name} answers {reply.content[:60]!r} to grading; a label is expected")
        shares = label_shares(reply.choices)
        if not shares and self.keep_above is not None:
            raise ObserverError(
                f"{self.name}: Ollama gave no probability of its label, which keep_above needs; update Ollama "
                "(observer doctor says to which version)"
            )
        return grade_of(shares, self.keep_above) if shares else Grade(label, {})

    async def _ask(self, task: Task, exchange: str, num_predict: int, more: dict[str, Any]) -> Reply:
        async with self._limit:
            examples = self.examples.get(task, ())
            body = ollama_chat_body(self.name, task, exchange, num_predict, examples) | more
            return reply_of(await self._client.achat(body), self._client.url)

    async def _all(self, ask: Ask[T], exchanges: Sequence[str], progress: Progress) -> list[T]:
        """The answers in order. The first fault of the server ends the rest; rows at fault are named together."""
        answers: dict[int, T] = {}
        faults: dict[int, str] = {}
        too_long: set[int] = set()

        async def one(index: int, exchange: str) -> None:
            try:
                answers[index] = await ask(exchange)
            except TooLong as error:
                faults[index] = f"{self.name} says: {error}; shorten the exchange or raise num_ctx in its Modelfile"
                too_long.add(index)
            except _NoLabel as error:
                faults[index] = str(error)
            progress(len(answers) + len(faults) - len(too_long), len(exchanges))  # those may be asked again

        tasks = [asyncio.create_task(one(index, exchange)) for index, exchange in enumerate(exchanges)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if faults:
            raise RowsError(faults, too_long=too_long, answers=answers)
        return [answers[index] for index in range(len(exchanges))]


def label_shares(choices: Sequence[TokenChoice]) -> dict[Label, float]:
    """Of the first token that begins a label, what of its alternatives' probability falls to each label.

    A label that begins none of them has 0. Empty when no token begins a label, or nothing is told.
    """
    for choice in choices:
        if _labels_begun(choice.text):
            shares = dict.fromkeys(Label, 0.0)
            for token, logprob in ({choice.text: choice.logprob} | choice.alternatives).items():
                for label in _labels_begun(token):
                    shares[label] += math.exp(logprob)
            total = sum(shares.values())
            return {label: share / total for label, share in shares.items()} if total else {}
    return {}


def _labels_begun(token: str) -> list[Label]:
    begin = token.strip(' "\n')
    return [label for label in Label if begin and label.startswith(begin)]


def _label_in(content: str) -> Label | None:
    """The label that is the whole answer, as a word or as a JSON string."""
    text = content.strip()
    try:
        value = json.loads(text)
        text = value if isinstance(value, str) else text
    except ValueError:
        pass
    return Label(text) if text in set(Label) else None
