"""What a call costs: published prices, what a server reports, and an estimate before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from observer.errors import ObserverError
from observer.prompts import Task

CHARACTERS_PER_TOKEN = 4
ANSWER_TOKENS = {Task.GRADE: 80, Task.EXTRACT: 250}
"""A typical answer of each task, for estimates."""


@dataclass(frozen=True)
class Price:
    """USD for one million tokens."""

    input_usd: float
    output_usd: float

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6


PRICES = {
    # OpenAI's list prices as published in 2024 and 2025 (openai.com/api/pricing); --price overrides them
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4o-mini": Price(0.15, 0.60),
}


def find_price(model: str, given: Price | None, is_loopback: bool) -> Price | None:
    """The price given, the published one, nothing for a server on this machine, or None: unknown."""
    return given or PRICES.get(model) or (Price(0, 0) if is_loopback else None)


def parse_price(text: str) -> Price:
    """`IN,OUT` in USD per million tokens. Raises ObserverError."""
    try:
        input_usd, output_usd = (float(part) for part in text.split(","))
    except ValueError:
        input_usd = output_usd = -1.0
    if not (0 <= input_usd < 1e6 and 0 <= output_usd < 1e6):
        raise ObserverError(f"--price {text}: two numbers are expected, USD per million tokens: --price 2.50,10.00")
    return Price(input_usd, output_usd)


def estimate_tokens(task: Task, messages: Sequence[dict[str, str]], schema_characters: int) -> tuple[int, int]:
    """(prompt, completion) tokens of a call: its characters / 4, and a typical answer."""
    characters = schema_characters + sum(len(message["content"]) for message in messages)
    return characters // CHARACTERS_PER_TOKEN + 1, ANSWER_TOKENS[task]
