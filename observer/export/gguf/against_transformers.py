"""A GGUF beside the model it was made of: the same tokens, the same logits, and answers that end.

The model runs in transformers, in float32 on the CPU. What the file alone can tell is `verify`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from observer.engine.engine import Engine
from observer.engine.llama_context import Logits
from observer.engine.llama_model import LlamaModel
from observer.export.gguf.verify import last_logits
from observer.observation import Completion
from observer.prompts import END_OF_TEXT, IM_END, Task, render_exchange, render_prompt
from observer.weights.checkpoint import faults_of_transformers, list_tensors, read_shape
from observer.weights.hostile_texts import HOSTILE_TEXTS
from observer.weights.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXCHANGES = (
    ("Thanks, that's all!", "You're welcome."),
    ("What's the capital of Peru?", "Lima."),
    ("I prefer tea to coffee.", "Good to know."),
    ("I started as a nurse at St. Mary's last week", "Congratulations!"),
    ("My sister Ana moved from Lisbon to Oslo in May.", "That's a long way."),
    ("We adopted a dog, her name is Luna", "How lovely."),
    ("I don't work at Siemens any more, I'm at Bosch now.", "How do you like it?"),
    ("If I won the lottery I'd buy a boat", ""),
    ("lol ok", "Anything else?"),
    ("I'm allergic to peanuts and I have two kids, Tim and Mia.", "I'll remember that."),
)
"""Ten turns: the first half is graded, all of them could be."""

MAX_RELATIVE_ERROR = {"f32": 0.02, "f16": 0.02, "bf16": 0.05, "q8_0": 0.10}
"""Largest root-mean-square difference of the logits, as a share of their own spread. Smaller types have none: how good
they are is for the evaluation to say."""

_COMPARED_POSITIONS = 32
_ANSWER_TOKENS = 256
_MEMORY_SHARE = 0.8


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    WARNED = "warned"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One finding, in a line."""

    name: str
    outcome: Outcome
    found: str


class Reference:
    """The merged model in transformers; loaded at first use, kept for all files of an export."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last_logits: dict[tuple[int, ...], Logits] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return read_tokenizer(self.folder)

    @cached_property
    def model(self) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # a line of our own is enough
        options = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        with faults_of_transformers(self.folder):
            return AutoModelForCausalLM.from_pretrained(str(self.folder), dtype=torch.float32, **options)

    @cached_property
    def too_large(self) -> str | None:
        """Why the model cannot be loaded here, or None."""
        import psutil

        needed = 4 * sum(math.prod(tensor.shape) for tensor in list_tensors(self.folder, read_shape(self.folder)))
        free = psutil.virtual_memory().available
        if "model" in self.__dict__ or needed < _MEMORY_SHARE * free:
            return None
        return f"the model takes {needed / 1e9:,.1f} GB in float32, {free / 1e9:,.1f} GB of memory are free"

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def logits(self, tokens: Sequence[int]) -> Logits:
        """(length, vocabulary), float32."""
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([list(tokens)])).logits[0].numpy()

    def last_logits(self, tokens: Sequence[int]) -> Logits:
        """Those of the last positions, remembered."""
        key = tuple(tokens)
        if key not in self._last_logits:
            self._last_logits[key] = self.logits(key)[-_COMPARED_POSITIONS:].copy()
        return self._last_logits[key]


def compare(path: Path, reference: Reference, file_type: str) -> list[Check]:
    """All checks of one file against its model."""
    with Engine(path) as engine:
        return [
            check_tokens(engine.model, reference),
            check_logits(engine.model, reference, file_type),
            check_endings(engine, reference),
        ]


def check_tokens(model: LlamaModel, reference: Reference) -> Check:
    """The prompts of hostile texts have the same ids in llama.cpp and in transformers."""
    exchanges = [render_exchange(text, reply) for text in HOSTILE_TEXTS for reply in ("", text)]
    prompts = [render_prompt(task, exchange) for task in Task for exchange in exchanges]
    differing = [prompt for prompt in prompts if model.tokenize(prompt) != reference.ids(prompt)]
    found = f"{len(prompts) - len(differing)} of {len(prompts)} hostile prompts have the token ids of transformers"
    if differing:
        found += f"; the first that differs: {differing[0][-80:]!r}"
    return Check("tokens", Outcome.FAILED if differing else Outcome.PASSED, found)


def check_logits(model: LlamaModel, reference: Reference, file_type: str) -> Check:
    """The logits of a few prompts are those of transformers, within the tolerance of the type."""
    if reference.too_large:
        return Check("logits", Outcome.SKIPPED, reference.too_large)
    prompts = [
        render_prompt(task, render_exchange(*EXCHANGES[number]))
        for number, task in ((3, Task.GRADE), (4, Task.EXTRACT))
    ]
    errors, largest, agreeing = [], 0.0, []
    for tokens in map(model.tokenize, prompts):
        expected = reference.last_logits(tokens)
        difference = last_logits(model, tokens, len(expected)) - expected
        errors.append(float(np.sqrt(np.mean(difference**2)) / expected.std()))
        largest = max(largest, float(np.abs(difference).max()))
        agreeing += ((difference + expected).argmax(-1) == expected.argmax(-1)).tolist()
    limit, error = MAX_RELATIVE_ERROR.get(file_type), max(errors)
    outcome = Outcome.FAILED if not math.isfinite(error) or (limit and error > limit) else Outcome.PASSED
    found = f"differ from transformers by {error:.2%} of their spread (at most {largest:.3f}), "
    found += f"the likeliest token is the same at {np.mean(agreeing):.0%} of {len(agreeing)} positions"
    return Check("logits", outcome, found + (f"; {limit:.0%} is allowed" if limit else ""))


def check_endings(engine: Engine, reference: Reference) -> Check:
    """Greedy answers end by themselves. Where they do not, the model is asked whether it would have ended them."""
    half = len(EXCHANGES) // 2
    rendered = [render_exchange(*exchange) for exchange in EXCHANGES]
    n_endless, cut_off = 0, 0
    for task, exchanges in ((Task.GRADE, rendered[:half]), (Task.EXTRACT, rendered[half:])):
        answers = engine.generate(task, exchanges, max_new_tokens=_ANSWER_TOKENS)
        for exchange, answer in zip(exchanges, answers, strict=True):
            n_endless += answer.truncated
            cut_off += answer.truncated and _would_have_ended(reference, render_prompt(task, exchange), answer)
    found = f"{len(rendered) - n_endless} of {len(rendered)} greedy answers end within {_ANSWER_TOKENS} tokens"
    if cut_off:
        return Check("endings", Outcome.FAILED, f"{found}; the model in transformers ends {cut_off} of the others")
    if n_endless:
        whose = "not compared with" if reference.too_large else "nor does the model end them in"
        return Check("endings", Outcome.WARNED, f"{found}, {whose} transformers; was it trained to answer our prompts?")
    return Check("endings", Outcome.PASSED, found)


def check_changed(model: Path, base: Path | None) -> Check:
    """The merged weights are not those of the base; reading stops at the first that differs."""
    if base is None:
        return Check("changed", Outcome.SKIPPED, "no base is known to compare the weights with; name it with --base")
    of_base = {tensor.name: tensor for tensor in list_tensors(base, read_shape(base))}
    for tensor in list_tensors(model, read_shape(model)):
        other = of_base.get(tensor.name)
        if other is None or other.shape != tensor.shape:
            return Check(
                "changed", Outcome.FAILED, f"{tensor.name} is not in {base} in this shape; name the right base"
            )
        if any(not np.array_equal(a, b) for a, b in zip(tensor.chunks(), other.chunks(), strict=True)):
            return Check("changed", Outcome.PASSED, f"{tensor.name} differs from the base's")
    return Check("changed", Outcome.FAILED, f"every weight equals that of {base}: the training is not in them")


def _would_have_ended(reference: Reference, prompt: str, answer: Completion) -> bool:
    """Whether the model, reading the same answer, prefers an end token somewhere before its last token."""
    if reference.too_large:
        return False
    start = reference.ids(prompt)
    ends = reference.tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    logits = reference.logits([*start, *answer.tokens])[len(start) - 1 : -1]
    return bool(np.isin(logits.argmax(-1), ends).any())
