"""How long something took or will take, as a person reads it: one spelling for all commands."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """`45 s`, `31 min 07 s` or `2 h 05 min`; rounded before it is split, so that no part reaches 60.

    Less than nothing, as what is left once an estimate has been passed, is `0 s`.
    """
    whole, minutes = round(max(seconds, 0)), round(seconds / 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"
