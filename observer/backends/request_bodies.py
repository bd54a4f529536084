"""The request bodies that ask a server about one exchange, with our prompts and schema. Nothing is sent from here.

Ollama is given messages and renders them with the Modelfile's TEMPLATE; llama-server and vLLM are given the rendered
prompt, which is the same text. Every body is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from observer.observation import MAX_NEW_TOKENS
from observer.ollama.chat import TOP_LOGPROBS
from observer.prompts import Example, Task, prompt_messages, render_prompt
from observer.schema import Label, extraction_grammar, extraction_json_schema

LABEL_TOKENS = 12
"""Bounds an answer that should be one word."""
KEPT_LABEL_TOKENS = 32
"""The same where a schema keeps the model to the labels: it may spell one letter by letter, between quotes."""


def ollama_chat_body(
    model: str, task: Task, exchange: str, num_predict: int, examples: Sequence[Example] = ()
) -> dict[str, Any]:
    """What every question to /api/chat holds: no thinking, and an error rather than half a conversation."""
    return {
        "model": model,
        "messages": prompt_messages(task, exchange, examples),
        "stream": False,
        "think": False,
        "truncate": False,
        "shift": False,
        "options": {"temperature": 0, "repeat_penalty": 1, "seed": 0, "num_predict": num_predict},
    }


def ollama_grading() -> dict[str, Any]:
    """What a grading adds: the label's probabilities are read off its first token."""
    return {"logprobs": True, "top_logprobs": TOP_LOGPROBS}


def ollama_request(model: str, task: Task, exchange: str) -> dict[str, Any]:
    """The body that `Observer("ollama:MODEL")` posts to /api/chat; `exchange` is `render_exchange`'s."""
    if task is Task.GRADE:
        return ollama_chat_body(model, task, exchange, LABEL_TOKENS) | ollama_grading()
    body = ollama_chat_body(model, task, exchange, MAX_NEW_TOKENS)
    return body | {"format": extraction_json_schema(), "logprobs": True}


def llama_server_request(task: Task, exchange: str) -> dict[str, Any]:
    """A body for llama-server's /completion. Grammar and bounds are those of `observer.engine.engine`."""
    body: dict[str, Any] = {"prompt": render_prompt(task, exchange), "temperature": 0, "repeat_penalty": 1}
    if task is Task.GRADE:
        return body | {"n_predict": LABEL_TOKENS, "n_probs": TOP_LOGPROBS}
    return body | {"n_predict": MAX_NEW_TOKENS, "grammar": extraction_grammar()}


def vllm_request(model: str, task: Task, exchange: str) -> dict[str, Any]:
    """A body for vLLM's /v1/completions, from 0.12 on (https://docs.vllm.ai/en/latest/features/structured_outputs/)."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": render_prompt(task, exchange),
        "add_special_tokens": False,
        "temperature": 0,
    }
    if task is Task.GRADE:
        labels = {"choice": [str(label) for label in Label]}
        return body | {"max_tokens": LABEL_TOKENS, "logprobs": TOP_LOGPROBS, "structured_outputs": labels}
    return body | {"max_tokens": MAX_NEW_TOKENS, "structured_outputs": {"json": extraction_json_schema()}}
