"""Types of command-line arguments that several commands share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number above zero. Raises ArgumentTypeError for a smaller one, ValueError for none."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a positive number is expected, found {text}")
    return value
