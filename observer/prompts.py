"""Every word the model sees around a turn, rendered one way for training, evaluation, client and Modelfile.

ChatML without a think block. Text that looks like a control token is neutralised here and nowhere else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from observer.schema import GradingRow, Label, RawRow, Temporal, Turn, one_of

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class Task(StrEnum):
    GRADE = "grade"
    EXTRACT = "extract"


class Example(NamedTuple):
    """A rendered exchange and its right answer, to be shown to a model that was not trained for the task."""

    exchange: str
    answer: str


Examples = Mapping[Task, Sequence[Example]]
NO_EXAMPLES: Examples = MappingProxyType({})

LABEL_MEANINGS: dict[Label, str] = {
    Label.DISCARD: "nothing durable",
    Label.STORE: "tastes, habits, interests, trips",
    Label.IMPORTANT: "identity, people, work, study, home, health, belongings",
}

SYSTEM_PROMPT = (
    "You keep an assistant's long-term memory. The last line names the task, which is about the last exchange. "
    f"GRADE: one word. {' '.join(f'{label}: {meaning}.' for label, meaning in LABEL_MEANINGS.items())} "
    "EXTRACT: what it states about the user and people in their life, as compact JSON: "
    "entities (name, type, attributes) and relationships (subject, predicate, object, temporal, when). "
    f"The speaker is User. Copy names from the text. temporal is {one_of(Temporal)}; "
    "a change is two relationships. Nothing stated: empty lists."
)
"""One instruction for both tasks, so that an exchange is read once and then asked twice."""

CUES: dict[Task, str] = {Task.GRADE: "GRADE:", Task.EXTRACT: "EXTRACT:"}
"""The last line of the user message. No message can forge one: its own lines after the first are indented."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""Our minimal chat template, without tools or thinking; a completion ends exactly at `<|im_end|>`."""

OLLAMA_TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
"""The same rendering as a Go template, for the Modelfile; the user message ends with the cue of its task."""


def ollama_template(task: Task) -> str:
    """For a model of one task: the template adds the cue, so that a user sends the exchange alone."""
    return OLLAMA_TEMPLATE.replace(
        "{{ .Content }}", '{{ .Content }}{{ if eq .Role "user" }}\n' + CUES[task] + "{{ end }}"
    )


_CONTROL_TOKEN = re.compile(r"<(?=\||/?(?:think|tool_call|tool_response)\b)|\|(?=>)", re.IGNORECASE)
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]")


def clean(text: str) -> str:
    """NFC text in which nothing tokenizes as a control token; line breaks become `\\n`.

    llama.cpp does not normalize and servers parse special tokens in user text, so both are settled here.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
    text = unicodedata.normalize("NFC", _CONTROL_CHARACTER.sub("", text))  # removal may bring an accent to its letter
    text = _LINE_BREAK.sub("\n", text)
    return _CONTROL_TOKEN.sub(lambda match: match.group() + " ", text)


def render_turn(role: str, content: str) -> str:
    """`USER: …` or `ASSISTANT: …`; continuation lines are indented, so no message can forge a role marker."""
    return f"{role.upper()}: " + clean(content).strip().replace("\n", "\n  ")


def render_exchange(user_message: str, assistant_message: str, context: Sequence[Turn] = ()) -> str:
    """The user message of our prompt: earlier turns, then the exchange; an empty reply is left out."""
    turns = [render_turn(turn.role, turn.content) for turn in context]
    turns.append(render_turn("user", user_message))
    if assistant_message.strip():
        turns.append(render_turn("assistant", assistant_message))
    return "\n".join(turns)


def prompt_messages(task: Task, exchange: str, examples: Sequence[Example] = ()) -> list[dict[str, str]]:
    """System and user message of one task; examples stand between them as earlier questions and answers."""
    messages = [{"role": "system", "content": SYSTEM_PROMPT}]
    for example in examples:
        messages.append({"role": "user", "content": with_cue(task, example.exchange)})
        messages.append({"role": "assistant", "content": example.answer})
    return [*messages, {"role": "user", "content": with_cue(task, exchange)}]


def with_cue(task: Task, exchange: str) -> str:
    """The user message: the exchange, then the line that names the task."""
    return f"{exchange}\n{CUES[task]}"


def exchange_of(row: Mapping[str, Any]) -> str:
    """The rendered turns of a split row: its user message without the line that names the task."""
    return row["prompt"][-1]["content"].removesuffix(f"\n{CUES[row['task']]}")


def render_chatml(messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """What CHAT_TEMPLATE renders, without jinja."""
    text = "\n".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}" for m in messages)
    return text + (f"\n{IM_START}assistant\n" if add_generation_prompt else "")


def render_prompt(task: Task, exchange: str, examples: Sequence[Example] = ()) -> str:
    """The whole prompt text of one exchange, up to where the answer begins."""
    return render_chatml(prompt_messages(task, exchange, examples))


def row_task(row: RawRow) -> Task:
    return Task.GRADE if isinstance(row, GradingRow) else Task.EXTRACT


def row_exchange(row: RawRow) -> str:
    return render_exchange(row.user_message, row.assistant_message, row.context)


def row_completion(row: RawRow) -> str:
    """The answer the model is to give: the label, or compact JSON."""
    return str(row.label) if isinstance(row, GradingRow) else clean(row.extraction.to_compact_json())


def training_row(row: RawRow) -> dict[str, Any]:
    """A TRL prompt-completion row in conversational form, with its provenance."""
    return {
        "prompt": prompt_messages(row_task(row), row_exchange(row)),
        "completion": [{"role": "assistant", "content": row_completion(row)}],
        "task": str(row_task(row)),
        "id": row.id,
        "family": row.family,
        "slices": row.slices,
    } | {key: value for key, value in (("unseen", row.unseen), ("origin", row.origin)) if value}
