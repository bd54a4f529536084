"""Types of command-line arguments. Each raises ArgumentTypeError for a number out of its range, ValueError for none."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    """A whole number above zero."""
    return natural(text, at_least=1)


def natural(text: str, *, at_least: int = 0) -> int:
    """A whole number from zero."""
    if int(text) < at_least:
        raise argparse.ArgumentTypeError(f"{text}: at least {at_least} is expected")
    return int(text)


def amount(text: str) -> float:
    """A number from zero."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 is expected")
    return float(text)


def seconds(text: str) -> float:
    """A number above zero."""
    if amount(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: more than 0 is expected")
    return float(text)


def share(text: str) -> float:
    """A number between zero and one."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a share between 0 and 1 is expected, such as 0.2")
    return float(text)
