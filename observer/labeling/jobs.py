"""The calls that a run needs: which are in the ledger, which is next, and what they come to for a row. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from observer.labeling.answers import Verdict, judge
from observer.labeling.answers_file import Answer
from observer.labeling.prompts import PROMPT_VERSION, GradingAnswer, answer_schema, label_messages
from observer.labeling.votes import Consensus, agree_on_extraction, agree_on_label
from observer.prompts import Task
from observer.schema import Extraction
from observer.turns.inputs import Item

CHARACTERS_PER_TOKEN = 4
ANSWER_TOKENS = {Task.GRADE: 80, Task.EXTRACT: 250}
"""A typical answer of each task, for estimates."""


@dataclass(frozen=True)
class Sampling:
    """Who answers, and how: what the ledger's keys depend on beside the text."""

    model: str
    temperature: float = 0.0
    server: str = ""
    """Its address; empty for OpenAI's. Servers of one's own take any model's name."""


@dataclass(frozen=True)
class Job:
    """One vote on one exchange. Rows with the same exchange share it."""

    task: Task
    exchange: str
    vote: int


@dataclass(frozen=True)
class Call:
    """One request to the server."""

    key: str
    task: Task
    messages: list[dict[str, str]]

    @property
    def tokens(self) -> tuple[int, int]:
        """Estimated (prompt, completion) tokens."""
        characters = len(schema_text(self.task)) + sum(len(message["content"]) for message in self.messages)
        return characters // CHARACTERS_PER_TOKEN + 1, ANSWER_TOKENS[self.task]


@dataclass(frozen=True)
class Outcome:
    """A row's gold, or why it is set aside and the raw answer; with neither, the row is left for the next run."""

    consensus: Consensus | None = None
    fault: str = ""
    answer: str = ""


def jobs_of(items: Iterable[Item], task: Task, votes: int) -> list[Job]:
    """The distinct jobs of the items, in their order."""
    return list(dict.fromkeys(Job(task, item.exchange, vote) for item in items for vote in range(votes)))


@cache
def schema_text(task: Task) -> str:
    return json.dumps(answer_schema(task))


def call_key(sampling: Sampling, job: Job, attempt: int) -> str:
    """The ledger's key of a call: everything that the answer depends on."""
    server = [sampling.server] if sampling.server else []
    parts = (*server, sampling.model, sampling.temperature, PROMPT_VERSION, schema_text(job.task))
    identity = json.dumps([*parts, job.task, job.vote, attempt, job.exchange])
    return hashlib.sha256(identity.encode()).hexdigest()


def next_call(sampling: Sampling, job: Job, answers: Mapping[str, Answer]) -> Call | None:
    """The call that the job still lacks: the first, one retry after a fault, or none."""
    first, retry = _answers_of(sampling, job, answers)
    if first is None:
        return Call(call_key(sampling, job, 0), job.task, label_messages(job.task, job.exchange))
    verdict = judge(job.task, first, job.exchange)
    if not verdict.may_retry or retry:
        return None
    messages = label_messages(job.task, job.exchange, first.text, verdict.fault)
    return Call(call_key(sampling, job, 1), job.task, messages)


def _answers_of(sampling: Sampling, job: Job, answers: Mapping[str, Answer]) -> tuple[Answer | None, Answer | None]:
    """The first answer and that of the retry; one that says nothing counts as not there."""
    first, retry = (answers.get(call_key(sampling, job, attempt)) for attempt in (0, 1))
    return None if first is None or first.is_none else first, None if retry is None or retry.is_none else retry


def outcome_of(
    sampling: Sampling, jobs: list[Job], answers: Mapping[str, Answer], refused: Mapping[Job, str]
) -> Outcome:
    """What the votes on one exchange come to. `refused` are the jobs that the server would not take, and why."""
    verdicts: list[tuple[Verdict, str]] = []
    for job in jobs:
        if job in refused:
            verdicts.append((Verdict(None, refused[job]), ""))
        elif next_call(sampling, job, answers):
            return Outcome()
        else:
            first, retry = _answers_of(sampling, job, answers)
            answer = retry or first
            assert answer, "no call is lacking"
            verdicts.append((judge(job.task, answer, job.exchange), answer.text))
    return _combine(verdicts)


def _combine(verdicts: list[tuple[Verdict, str]]) -> Outcome:
    labels = [verdict.value for verdict, _ in verdicts if isinstance(verdict.value, GradingAnswer)]
    extractions = [verdict.value for verdict, _ in verdicts if isinstance(verdict.value, Extraction)]
    sound, asked = len(labels) + len(extractions), len(verdicts)
    if 2 * sound <= asked:
        fault, answer = next((verdict.fault, text) for verdict, text in verdicts if verdict.fault)
        return Outcome(fault=fault if asked == 1 else f"{asked - sound} of {asked} votes: {fault}", answer=answer)
    consensus = agree_on_label(labels, asked) if labels else agree_on_extraction(extractions, asked)
    if consensus.value is None:
        return Outcome(fault=f"the {asked} votes do not agree", answer="\n".join(text for _, text in verdicts))
    return Outcome(consensus)
