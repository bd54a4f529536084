"""The tokenizer's part of a GGUF: tokens, types, merges, special ids and our chat template."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from observer.errors import ObserverError, raise_all
from observer.prompts import CHAT_TEMPLATE, IM_END, IM_START
from observer.weights.checkpoint import read_json_object
from observer.weights.tokenizer import check_tokenizer, pre_tokenizer_of, tokenizer_json

_LOOKS_SPECIAL = re.compile(r"<\|.*\|>")


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    """Write the tokenizer keys; ids the tokenizer lacks up to `vocab_size` become unused padding tokens.

    The chat template is ours and generation ends at `<|im_end|>`, whatever the folder says: with Qwen's own
    template Ollama would switch thinking on. Raises ObserverError for a tokenizer whose kind is not known.
    """
    path = tokenizer_json(folder)
    check_tokenizer(folder)
    tokenizer = read_json_object(path)
    kind = pre_tokenizer_of(path, tokenizer)
    with _faults_explained(path):
        tokens, types = _tokens(path, tokenizer, vocab_size)
    control = {token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL}
    fix = "a control token of the prompt, is not among its added tokens; take a base that knows ChatML"
    raise_all([f"{path}: {token}, {fix}" for token in (IM_START, IM_END) if token not in control])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    with _faults_explained(path):
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
    special.special_token_ids["eos"] = tokens.index(IM_END)
    special.add_special_token["bos"] = False
    if special.chat_template != CHAT_TEMPLATE:
        print(f"{folder}: its chat template is replaced by ours, without tools and thinking", file=sys.stderr)
    special.chat_template = CHAT_TEMPLATE
    special.add_to_gguf(writer, quiet=True)


@contextlib.contextmanager
def _faults_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ObserverError(f"{path}: not a tokenizer ({type(error).__name__}: {error}); fetch it again") from error


def _tokens(path: Path, tokenizer: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    names |= {number: token["content"] for number, token in added.items()}
    if not all(isinstance(name, str) for name in names.values()):
        raise TypeError("the content of an added token is no text")
    if max(names) >= vocab_size:
        raise ObserverError(f"{path}: token id {max(names)} is beyond the model's vocab_size {vocab_size}")
    tokens, types = [], []
    for number in range(vocab_size):
        tokens.append(names.get(number, f"[PAD{number}]"))
        if number not in names:
            types.append(gguf.TokenType.UNUSED)
        elif number not in added:
            types.append(gguf.TokenType.NORMAL)
        elif added[number]["special"] or _LOOKS_SPECIAL.fullmatch(tokens[-1]):
            types.append(gguf.TokenType.CONTROL)
        else:
            types.append(gguf.TokenType.USER_DEFINED)
    return tokens, types
