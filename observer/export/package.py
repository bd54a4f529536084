"""A run becomes models in a running Ollama, and is then asked whether they are what was trained.

What is sent says the same as the Modelfiles beside the GGUF files, so that `ollama create -f` makes the same models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observer.config import ExportConfig
from observer.console.progress import show_progress
from observer.data.dataset import read_split
from observer.errors import ObserverError
from observer.files import sha256_file
from observer.ollama.address import full_name
from observer.ollama.chat import TOP_LOGPROBS, is_stopped
from observer.ollama.client import OllamaClient
from observer.ollama.modelfile import (
    VARIANTS,
    Variant,
    create_request,
    library_base,
    quantization_modelfiles,
    write_all,
)
from observer.ollama.near_ties import NEAR_TIE_NATS, nats_apart
from observer.paths import ADAPTER
from observer.prompts import Task, exchange_of, prompt_messages, render_chatml, render_exchange
from observer.runs.finished_run import Run

_PROBE = render_exchange("I moved to Łódź\n<|im_end|> 🙂", "Nice!")


@dataclass(frozen=True)
class Question:
    """One row for one model: what is sent, and the prompt that must come of it."""

    model: str
    task: Task
    exchange: str
    messages: list[dict[str, str]]
    prompt: str


@dataclass(frozen=True)
class Difference:
    """One answer that parts from ours. `nats`: how much likelier the server finds its token there; None if not told."""

    place: str
    nats: float | None

    @property
    def is_near_tie(self) -> bool:
        return self.nats is not None and self.nats <= NEAR_TIE_NATS


@dataclass(frozen=True)
class Checked:
    """What the server was asked; `n_prompts` is 0 when it is too old to tell its prompts."""

    n_prompts: int
    n_answers: int
    differences: tuple[Difference, ...]

    @property
    def is_sound(self) -> bool:
        return all(difference.is_near_tie for difference in self.differences)


def check_name(name: str) -> None:
    """Raise ObserverError unless Ollama takes this name for each of the models."""
    for variant in VARIANTS:
        full_name(variant_name(name, variant))


def variant_name(name: str, variant: str) -> str:
    """`observer` → `observer-grade`, and `observer:q8_0` → `observer-grade:q8_0`."""
    if not variant:
        return name
    path, slash, last = name.rpartition("/")
    model, colon, tag = last.partition(":")
    return f"{path}{slash}{model}-{variant}{colon}{tag}"


def write_package(run: Run, quantization: str) -> dict[Variant, Path]:
    """Write the three Modelfiles of one quantization (or `adapter`). Raises ObserverError when its GGUF is missing."""
    weights = run.paths.gguf(quantization)
    if not weights.is_file():
        prefix = f"{run.paths.name}-"
        there = sorted(path.stem.removeprefix(prefix) for path in weights.parent.glob(f"{prefix}*.gguf"))
        raise ObserverError(f"{weights}: no such file; there are: {', '.join(there) or 'none, export them first'}")
    files = quantization_modelfiles(run.paths, run.config, quantization)
    write_all(files)
    return dict(zip(VARIANTS, files, strict=True))


def create_commands(name: str, modelfiles: dict[Variant, Path]) -> list[str]:
    """What to type when no server answers now."""
    return [f"ollama create {variant_name(name, variant)} -f {path}" for variant, path in modelfiles.items()]


def create_models(client: OllamaClient, name: str, run: Run, quantization: str) -> list[str]:
    """Upload the weights and create the three models over them; return their names."""
    file = run.paths.gguf(quantization)
    weights = {file.name: _push(client, file)}
    adapted = library_base(run.config.model.base) if quantization == ADAPTER else None
    models: dict[str, Variant] = {variant_name(name, variant): variant for variant in VARIANTS}
    for model, variant in models.items():
        client.create(create_request(model, run.config, variant, weights, adapted))
    return list(models)


def make_questions(name: str, val: Path, n_rows: int) -> list[Question]:
    """Rows of each task for its own model, and one hostile exchange for both tasks of the model `name`."""
    questions = []
    rows = read_split(val) if val.exists() else []
    for task in Task:
        of_task = [exchange_of(row) for row in rows if row["task"] == task]
        n = min(n_rows // len(Task), len(of_task))
        for exchange in (of_task[i * len(of_task) // n] for i in range(n)):
            questions.append(_question(variant_name(name, task), task, exchange, is_for_one_task=True))
        questions.append(_question(name, task, _PROBE, is_for_one_task=False))
    return questions


def check_prompts(client: OllamaClient, questions: Sequence[Question]) -> int:
    """Compare the prompts that the server renders with ours; return how many, 0 when it cannot tell.

    Raises ObserverError for the first that differs, where it does.
    """
    with show_progress("comparing prompts", len(questions)) as progress:
        for done, question in enumerate(questions, 1):
            rendered = rendered_prompt(client, question.model, question.messages)
            if rendered is None:
                return 0
            if rendered != question.prompt:
                raise ObserverError(
                    f"{question.model}: its prompt is not the training prompt: {_parting(rendered, question.prompt)}; "
                    "is OLLAMA_GO_TEMPLATE=0 set, or another template in the base?"
                )
            progress(done, len(questions))
    return len(questions)


def check_answers(
    client: OllamaClient, questions: Sequence[Question], gguf: Path, export: ExportConfig
) -> tuple[Difference, ...]:
    """Greedy answers of the server beside llama-cpp-python's on the same GGUF; those that differ.

    One that the server stops because it repeats itself has only to agree as far as it goes.
    """
    expected = _answers_here(questions, gguf, export)
    differences = []
    with show_progress("comparing answers", len(questions)) as progress:
        for done, (question, ours) in enumerate(zip(questions, expected, strict=True), 1):
            reply = ask(client, question.model, question.messages, logprobs=True, top_logprobs=TOP_LOGPROBS)
            theirs = _text_of(reply, question.model)
            if theirs != ours and not (is_stopped(reply) and ours.startswith(theirs)):
                place = f"{question.model}: {_parting(theirs, ours)}"
                differences.append(Difference(place, nats_apart(reply.get("logprobs") or [], ours)))
            progress(done, len(questions))
    return tuple(differences)


def rendered_prompt(client: OllamaClient, model: str, messages: list[dict[str, str]]) -> str | None:
    """The prompt that the model would get; None from a server before 0.11.5, which cannot tell."""
    answer = ask(client, model, messages, _debug_render_only=True, options={"num_predict": 1})
    return (answer.get("_debug_info") or {}).get("rendered_template")


def ask(client: OllamaClient, model: str, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    return client.chat({"model": model, "messages": messages, "stream": False, "shift": False, **more})


def _text_of(reply: dict[str, Any], model: str) -> str:
    message = reply.get("message") or {}
    if message.get("thinking"):
        raise ObserverError(f"{model}: answers with a thinking block; the base's template is in use, not ours")
    return str(message.get("content") or "")


def check(client: OllamaClient, run: Run, quantization: str, name: str, n_rows: int) -> Checked:
    """Prompts of every model, and answers where this quantization can be run here too (not for an adapter)."""
    questions = make_questions(name, run.split.val, n_rows)
    n_prompts = check_prompts(client, questions)
    asked = [question for question in questions if question.model != name]
    if quantization == ADAPTER or not asked:
        return Checked(n_prompts, 0, ())
    return Checked(n_prompts, len(asked), check_answers(client, asked, run.paths.gguf(quantization), run.config.export))


def _answers_here(questions: Sequence[Question], gguf: Path, export: ExportConfig) -> list[str]:
    from observer.engine.engine import Engine

    answers: dict[str, str] = {}
    with Engine(gguf, n_ctx_per_row=export.num_ctx, n_seq=1, max_new_tokens=export.num_predict) as engine:
        for task in Task:
            exchanges = [question.exchange for question in questions if question.task == task]
            completions = engine.generate(task, exchanges)
            prompts = [question.prompt for question in questions if question.task == task]
            answers |= {prompt: completion.text for prompt, completion in zip(prompts, completions, strict=True)}
    return [answers[question.prompt] for question in questions]


def _question(model: str, task: Task, exchange: str, *, is_for_one_task: bool) -> Question:
    """A model of one task is sent the exchange alone: its Modelfile adds the instruction and the cue."""
    messages = prompt_messages(task, exchange)
    sent = [{"role": "user", "content": exchange}] if is_for_one_task else messages
    return Question(model, task, exchange, sent, render_chatml(messages))


def _push(client: OllamaClient, path: Path) -> str:
    digest = f"sha256:{sha256_file(path)}"
    with show_progress(f"uploading {path.name}, bytes", path.stat().st_size) as progress:
        client.push_blob(path, digest, progress)
    return digest


def _parting(theirs: str, ours: str) -> str:
    """Where two texts part."""
    place = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    return f"{theirs[place : place + 40]!r} where {ours[place : place + 40]!r} is expected, at character {place}"
