"""What only Qwen's own vocabulary can tell: prompt lengths, how labels split, and how long the shipped rows are.

The vocabulary is looked for in OBSERVER_QWEN2_VOCAB, then in shared/qwen2-vocab beside the checkout. llama.cpp reads it
much faster than transformers does, whose token ids are the same (`tests/export/test_gguf.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from observer.data.dataset import read_split
from observer.paths import PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL
from observer.prompts import SYSTEM_PROMPT, render_chatml
from observer.schema import Label

FOLDER = Path(os.environ.get("OBSERVER_QWEN2_VOCAB") or PROJECT_ROOT.parent / "shared" / "qwen2-vocab")
VOCABULARY = FOLDER / "ggml-vocab-qwen2.gguf"
MAX_LENGTH = 1024
Count = Callable[[Sequence[str]], list[int]]

pytestmark = pytest.mark.skipif(
    not VOCABULARY.is_file(), reason=f"no {VOCABULARY.name}; name its folder in OBSERVER_QWEN2_VOCAB"
)


@pytest.fixture(scope="module")
def count() -> Count:
    """The tokens of each text."""
    from llama_cpp import Llama

    model = Llama(str(VOCABULARY), vocab_only=True, verbose=False)
    return lambda texts: [len(model.tokenize(text.encode(), add_bos=False, special=True)) for text in texts]


def test_the_system_prompt_is_short(count: Count) -> None:
    assert count([SYSTEM_PROMPT])[0] <= 160


def test_labels_and_chatml_tokens_are_one_or_two_tokens(count: Count) -> None:
    assert count(list(Label)) == [2, 1, 1]
    assert count(["<|im_start|>", "<|im_end|>", "<|endoftext|>"]) == [1, 1, 1]


@pytest.mark.parametrize("path", [TRAIN_JSONL, VAL_JSONL], ids=["train", "val"])
def test_no_row_of_a_split_is_longer_than_max_length(count: Count, path: Path) -> None:
    rows = read_split(PROJECT_ROOT / path)
    texts = [render_chatml(row["prompt"] + row["completion"], add_generation_prompt=False) for row in rows]
    assert max(count(texts)) <= MAX_LENGTH
