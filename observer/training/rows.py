"""Split rows as token ids: the prompt masked, the completion trained, and nothing cut off in silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.config import Config
from observer.data.dataset import PlacedLines, place_part, scan_split
from observer.data.own_data import OwnData
from observer.errors import ObserverError, raise_all
from observer.prompts import IM_END, exchange_of, render_chatml
from observer.training.token_cache import look_up

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, control tokens parsed, nothing added."""

CHARACTERS_PER_TOKEN = 4.4
"""Of Qwen's tokenizer on our rows, for planning without a tokenizer."""
IGNORED = -100
"""The label of a token that is not trained."""


@dataclass(frozen=True)
class TokenRow:
    """One row: `input_ids` is prompt then completion, which ends with `<|im_end|>`.

    Rows about one exchange have the same `exchange`, any number; None where that is not known.
    """

    input_ids: list[int]
    prompt_length: int
    task: str
    exchange: int | None = None

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.prompt_length + self.input_ids[self.prompt_length :]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Splits:
    """The rows of a run."""

    train: list[TokenRow]
    val: list[TokenRow]


def load_splits(
    config: Config, encode: Encode, *, check_lengths: bool = True, own_data: OwnData | None = None
) -> Splits:
    """Check and tokenize both files, or the rows made of the user's own. Raises ObserverError naming every fault."""
    faults: list[str] = []
    splits = []
    for placed, found in read_split_files(config, own_data):
        rows = tokenize_rows([row for _, row in placed], encode)
        if check_lengths:
            found += length_faults(rows, [place for place, _ in placed], config.data.max_length)
        faults += found
        splits.append(rows)
    raise_all(faults)
    return Splits(*splits)


def read_split_files(config: Config, own_data: OwnData | None = None) -> list[tuple[PlacedLines, list[str]]]:
    """The sound rows of train, with those of `data.more`, and of val, with their places and the others' faults."""
    if own_data:
        (train, train_faults), val = (own_data.train, []), (own_data.val, [])
    else:
        (train, train_faults), val = (scan_split(path) for path in (config.data.train, config.data.val))
    more = [row for path in config.data.more for row in place_part(path, "train")]
    return [([*train, *more], train_faults), val]


def tokenize_rows(rows: Sequence[dict[str, Any]], encode: Encode) -> list[TokenRow]:
    """Prompt and completion are tokenized apart, as by a server that sees the prompt alone."""
    if not rows:
        return []
    prompts = encode([render_chatml(row["prompt"]) for row in rows])
    completions = encode([row["completion"][0]["content"] + IM_END for row in rows])
    numbers: dict[str, int] = {}
    return [
        TokenRow(prompt + completion, len(prompt), row["task"], numbers.setdefault(exchange_of(row), len(numbers)))
        for row, prompt, completion in zip(rows, prompts, completions, strict=True)
    ]


def encode_with(tokenizer: PreTrainedTokenizerBase, cache: Path | None = None) -> Encode:
    """Encode as transformers does; with a `cache` folder, what was encoded before is read from it."""

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]  # type: ignore[return-value]

    definition = tokenizer.backend_tokenizer.to_str() if cache else ""  # type: ignore[union-attr]
    return (lambda texts: look_up(texts, definition, encode, cache)) if cache else encode


def encode_with_gguf(path: Path) -> Encode:
    """Encode with the vocabulary of a GGUF, which may hold no weights. Raises ObserverError when it is none."""
    from llama_cpp import Llama

    from observer.engine.llama_model import silence_log

    silence_log()
    try:
        vocabulary = Llama(str(path), vocab_only=True, verbose=False)
    except (OSError, ValueError) as error:
        raise ObserverError(f"{path}: llama.cpp cannot read a vocabulary from it; give a GGUF file") from error
    return lambda texts: [vocabulary.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def encode_by_length(texts: list[str]) -> list[list[int]]:
    """About as many ids as Qwen's tokenizer would give; they mean nothing, but texts that begin alike share some."""
    return [[ord(text[int(n * CHARACTERS_PER_TOKEN)]) for n in range(math.ceil(len(text) / CHARACTERS_PER_TOKEN))]
            for text in texts]  # fmt: skip


def length_faults(rows: Sequence[TokenRow], places: Sequence[str], max_length: int) -> list[str]:
    """A row is never truncated: its end is the answer."""
    return [
        f"{place}: {len(row)} tokens, more than data.max_length {max_length}; shorten it or raise data.max_length"
        for row, place in zip(rows, places, strict=True)
        if len(row) > max_length
    ]
