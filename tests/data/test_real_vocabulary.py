"""What only Qwen's own vocabulary can tell: prompt lengths, how labels split, and how long the shipped rows are.

The vocabulary is looked for in OBSERVER_QWEN2_VOCAB, then in shared/qwen2-vocab beside the checkout.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from observer.data.dataset import read_split
from observer.files import read_jsonl
from observer.paths import EXTRACTION_JSONL, GRADING_JSONL, PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL
from observer.prompts import SYSTEM_PROMPT, render_chatml, training_row
from observer.schema import Label, parse_row

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


def test_labels_are_one_or_two_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert dict(zip(Label, count(tokenizer, list(Label)), strict=True)) == {
        Label.DISCARD: 2,
        Label.STORE: 1,
        Label.IMPORTANT: 1,
    }


def test_chatml_tokens_are_single(tokenizer: PreTrainedTokenizerBase) -> None:
    assert count(tokenizer, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]) == [1, 1, 1]


@pytest.mark.parametrize("path", [TRAIN_JSONL, VAL_JSONL], ids=["train", "val"])
def test_no_row_of_a_split_is_longer_than_max_length(
    tokenizer: PreTrainedTokenizerBase, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_split(PROJECT_ROOT / path)
    lengths = count(
        tokenizer, [render_chatml(r["prompt"] + r["completion"], add_generation_prompt=False) for r in rows]
    )
    with capsys.disabled():
        print(f"\n{path.stem}: {describe(lengths)}")
    longest = max(range(len(rows)), key=lengths.__getitem__)
    assert lengths[longest] <= MAX_LENGTH, f"{path}: row {rows[longest]['id']} has {lengths[longest]} tokens"


@pytest.mark.parametrize("path", [GRADING_JSONL, EXTRACTION_JSONL], ids=lambda path: path.stem)
def test_no_raw_row_is_longer_than_max_length(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    rows = [parse_row(value)[0] for _, value in read_jsonl(PROJECT_ROOT / path)]
    trained = [training_row(row) for row in rows if row]
    assert len(trained) == len(rows)
    texts = [render_chatml(r["prompt"] + r["completion"], add_generation_prompt=False) for r in trained]
    assert max(count(tokenizer, texts)) <= MAX_LENGTH


def describe(lengths: list[int]) -> str:
    mean, longest = statistics.mean(lengths), max(lengths)
    return f"{len(lengths):,} rows, {sum(lengths):,} Qwen tokens, mean {mean:.0f}, longest {longest}"
