"""What only Qwen's own vocabulary can tell: prompt lengths, how labels split, and how long the shipped rows are.

The vocabulary is looked for in OBSERVER_QWEN2_VOCAB, then in shared/qwen2-vocab beside the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from observer.data.dataset import read_split
from observer.paths import PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL
from observer.prompts import SYSTEM_PROMPT, render_chatml
from observer.schema import Label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GGUF_NAME = "ggml-vocab-qwen2.gguf"
MAX_LENGTH = 1024


def vocabulary_folder() -> Path:
    return Path(os.environ.get("OBSERVER_QWEN2_VOCAB") or PROJECT_ROOT.parent / "shared" / "qwen2-vocab")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (vocabulary_folder() / GGUF_NAME).is_file(),
        reason=f"no {GGUF_NAME}; name its folder in OBSERVER_QWEN2_VOCAB",
    ),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(vocabulary_folder(), gguf_file=GGUF_NAME)


def count(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def test_the_system_prompt_is_short(tokenizer: PreTrainedTokenizerBase) -> None:
    assert count(tokenizer, [SYSTEM_PROMPT])[0] <= 160


def test_labels_and_chatml_tokens_are_one_or_two_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert count(tokenizer, list(Label)) == [2, 1, 1]
    assert count(tokenizer, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]) == [1, 1, 1]


@pytest.mark.parametrize("path", [TRAIN_JSONL, VAL_JSONL], ids=["train", "val"])
def test_no_row_of_a_split_is_longer_than_max_length(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    rows = read_split(PROJECT_ROOT / path)
    texts = [render_chatml(row["prompt"] + row["completion"], add_generation_prompt=False) for row in rows]
    assert max(count(tokenizer, texts)) <= MAX_LENGTH
