"""Where two greedy answers part: by how much the server preferred its token to ours, read off its `top_logprobs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from observer.prompts import IM_END

NEAR_TIE_NATS = 0.5
"""Builds of llama.cpp round otherwise: where answers of q8_0 and q4_k_m parted, the two best tokens were 0.003 to 0.41
apart; a model that is another one parts by whole nats."""


def nats_apart(entries: Sequence[dict[str, Any]], ours: str) -> float | None:
    """How much likelier the server finds its token at the first place that parts from `ours`; None when not told.

    `entries` are a reply's `logprobs`. Not told are servers without them, tokens that are not among the alternatives,
    and an answer that ends where ours goes on: Ollama tells nothing of the token that ends it.
    """
    written, expected = b"", ours.encode()
    try:
        for entry in entries:
            if not expected.startswith(written + _bytes(entry)) or not _bytes(entry):
                rest = expected[len(written) :]
                same = [float(o["logprob"]) for o in entry.get("top_logprobs") or () if _continues(_bytes(o), rest)]
                return max(0.0, float(entry["logprob"]) - max(same)) if same else None
            written += _bytes(entry)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return None


def _continues(token: bytes, rest: bytes) -> bool:
    """Whether it is a token of ours: the end where ours ends, else the beginning of what follows."""
    is_end = token in (b"", IM_END.encode())
    return is_end if not rest else not is_end and rest.startswith(token)


def _bytes(entry: dict[str, Any]) -> bytes:
    """A part of a character has no text of its own."""
    told = entry.get("bytes")
    return bytes(told) if told else str(entry["token"]).encode()
