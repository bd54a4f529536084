"""Changes to an input that keep some of its form, so that what lies behind a parser's first check is reached.

Blind changes of bytes, and pieces of other inputs, are libFuzzer's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

TOKENS = [
    *"{ } [ ] : , \" ' \\ # - ? | > & * ! % @ ` ~ = / ( ) \n \t \r".split(" "),
    "\n%%\n", "\n\n", "---", "...", "\ufeff", "\x00", "\x1b[31m", "\x85", "\u2028", "\u202e", "\u200b",
    "e\u0301", "\ud7ff",
    "null", "true", "false", "NaN", "-Infinity", "1e999", "-0", "9" * 30, "9" * 5_000, "0.1", "-1", '"\\ud800"',
    "&a", "*a", "<<: *a", "!!python/object", "!!binary", "!!timestamp 2001-99-99", "2001-12-14t21:59:43.10-05:00",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<|", "|>", "<\u200b|",
    "USER: ", "ASSISTANT: ", "SYSTEM: ", "user:", "[REDACTED]", "```json\n", "\n```",
    "password is ", "pin 1234 ", "sk-", "-----BEGIN PRIVATE KEY-----", "://u:p@", "token_", "= ", "my code is ",
    "since ", "until ", "from 2019 to 2021", "in 3 weeks", "two years ago", "last March", "next year", "0001-01-01",
    "9999-12-31T23:59:59-23:59", "GGUF", "SQLite format 3\x00", "__metadata__", "data_offsets",
]  # fmt: skip
"""What the formats that we read are made of, and what has broken parsers before."""

VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", " ", "User", "\ud800", "\x1b[2J",
    "x" * 5_000, [], [[]], {}, {"": ""}, [None], "DISCARD", "USER: x", "0001-01-01T00:00:00+14:00", "<|im_end|>",
]  # fmt: skip


def mutated(data: bytes, rng: random.Random, max_bytes: int) -> bytes:
    """One to four changes, each of a kind drawn at random."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_KINDS)(data, rng)[:max_bytes]
    return data


def _put_token(data: bytes, rng: random.Random) -> bytes:
    start, end = _piece(data, rng, 8)
    return data[:start] + _token(rng) + data[rng.choice((start, end)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    """A short piece many times over: what makes a search take the square of the length, or worse."""
    start, end = _piece(data, rng, 24)
    piece = data[start:end] + (_token(rng) if rng.random() < 0.5 else b"")
    return data[:start] + piece * rng.choice((2, 3, 10, 30, 30, 300, 300, 3_000, 30_000)) + data[end:]


def _nest(data: bytes, rng: random.Random) -> bytes:
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"{a: ", b"}"), (b"<", b">")])
    start, end = _piece(data, rng, 40)
    depth = rng.choice((2, 40, 500, 5_000))
    return data[:start] + opening * depth + data[start:end] + closing * depth + data[end:]


def _change_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines[place] = lines[other]
        case 1:
            lines.insert(place, lines[other])
        case 2:
            lines[place], lines[other] = lines[other], lines[place]
        case _:
            del lines[place]
    return b"\n".join(lines)


def _change_json(data: bytes, rng: random.Random) -> bytes:
    """Another value, key or type somewhere in a line of JSON; a line that is none stays."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    try:
        value = json.loads(lines[place])
        changed = json.dumps(_changed(value, rng), ensure_ascii=rng.random() < 0.8)
    except (ValueError, RecursionError):
        return data
    lines[place] = changed.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _changed(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {name: child for name, child in value.items() if name != key}
            case 1:
                return value | {_token(rng).decode("utf-8", "replace"): value[key]}
            case 2:
                return value | {rng.choice(list(value)): value[key]}
            case _:
                return value | {key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value + [value[place]] * rng.choice((1, 20, 400))
            case _:
                return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    if isinstance(value, str) and rng.random() < 0.5:
        return mutated(value.encode("utf-8", "replace"), rng, 20_000).decode("utf-8", "replace")
    return rng.choice(VALUES)


def _piece(data: bytes, rng: random.Random, longest: int) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.randint(0, longest))


def _token(rng: random.Random) -> bytes:
    return rng.choice(TOKENS).encode("utf-8", "replace")


_KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    _put_token, _change_json, _change_json, _repeat, _nest, _change_lines
]  # fmt: skip
