"""What calls cost: published prices, or those of the command line."""

from __future__ import annotations

from dataclasses import dataclass

from observer.errors import ObserverError


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


def parse_price(text: str) -> Price:
    """`IN,OUT` in USD per million tokens. Raises ObserverError."""
    try:
        input_usd, output_usd = (float(part) for part in text.split(","))
    except ValueError:
        input_usd = output_usd = -1.0
    if not (0 <= input_usd < 1e6 and 0 <= output_usd < 1e6):
        raise ObserverError(f"--price {text}: two numbers are expected, USD per million tokens: --price 2.50,10.00")
    return Price(input_usd, output_usd)
