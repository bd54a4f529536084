"""What an answer of /api/chat says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from observer.errors import ObserverError

TOP_LOGPROBS = 20
"""Alternatives asked for at each place: the most that Ollama and vLLM tell."""


@dataclass(frozen=True)
class TokenChoice:
    """A generated token's text, its natural log-probability, and the likeliest tokens at its place."""

    text: str
    logprob: float
    alternatives: dict[str, float]


@dataclass(frozen=True)
class Reply:
    """`choices` is empty where the server does not tell log-probabilities (before 0.12.11)."""

    content: str
    truncated: bool
    choices: list[TokenChoice]


def reply_of(answer: dict[str, Any], url: str) -> Reply:
    """Raises ObserverError for what no Ollama answers; `url` is where it came from."""
    try:
        content = (answer.get("message") or {}).get("content") or ""
        choices = [_choice(entry) for entry in answer.get("logprobs") or ()]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        content, choices = None, []
    if not isinstance(content, str):
        raise ObserverError(f"{url}: what answers is no Ollama server; check OLLAMA_HOST")
    return Reply(content, is_stopped(answer), choices)


def is_stopped(reply: dict[str, Any]) -> bool:
    """Whether an answer was ended for the model: by its limit, or, more than 30 equal tokens in a row, as not done."""
    return reply.get("done_reason") == "length" or reply.get("done") is False


def _choice(entry: dict[str, Any]) -> TokenChoice:
    """Raises KeyError, TypeError, ValueError or AttributeError for what is none."""
    alternatives = {str(other["token"]): _logprob(other) for other in entry.get("top_logprobs") or ()}
    return TokenChoice(str(entry["token"]), _logprob(entry), alternatives)


def _logprob(entry: dict[str, Any]) -> float:
    logprob = float(entry["logprob"])
    if not logprob < 1e-3:  # above 0 by rounding at most, and NaN is nothing
        raise ValueError(f"{logprob} is no log-probability")
    return logprob
