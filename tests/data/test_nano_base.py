"""The embedded base: its shape, its size, its template, and that it copies names it never saw into JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from observer.engine.engine import Engine
from observer.files import read_jsonl
from observer.paths import NANO_BASE, PROJECT_ROOT, TRAIN_JSONL, VAL_JSONL
from observer.prompts import CHAT_TEMPLATE, IM_END, Task, render_chatml, render_exchange, render_prompt
from tests.conftest import hostile_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE = PROJECT_ROOT / NANO_BASE
NEVER_SEEN = ("Quillmere", "Zandrovia", "Hobbenfax", "Trevoskin", "Mirelund", "Oskavanti", "Pelliworth", "Yarbosko")
SAYINGS = ("I work at {}", "I live in {} now", "my sister {} is coming over", "I have a dog called {}")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def test_shape_fits_every_quantization_and_size_fits_the_repository() -> None:
    config = json.loads((BASE / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["head_dim"] == 64
    assert config["tie_word_embeddings"] is True
    assert config["hidden_size"] % 256 == 0 and config["intermediate_size"] % 256 == 0
    assert (BASE / "model.safetensors").stat().st_size <= 12e6


def test_tokenizer_carries_our_template_and_ends_at_im_end(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.eos_token == IM_END


@pytest.mark.parametrize("name", [*NEVER_SEEN, "biryani", "topiramate", "data engineer"])
def test_a_name_has_the_same_tokens_in_a_sentence_and_in_json(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize(f" {name}") == [*tokenizer.tokenize(" "), *tokenizer.tokenize(name)]


def test_names_never_seen_are_copied_into_the_json(engine: Engine) -> None:
    names = [name for name in NEVER_SEEN for _ in SAYINGS]
    exchanges = [render_exchange(saying.format(name), "Noted!") for name in NEVER_SEEN for saying in SAYINGS]
    answers = [json.loads(answer.text) for answer in engine.extract(exchanges)]
    copied = [
        name in {entity["name"] for entity in answer["entities"]} for name, answer in zip(names, answers, strict=True)
    ]
    assert sum(copied) >= 0.75 * len(copied)


def test_token_ids_of_transformers_and_llama_cpp_agree_on_every_row_and_hostile_text(
    engine: Engine, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [row for path in (TRAIN_JSONL, VAL_JSONL) for _, row in read_jsonl(PROJECT_ROOT / path)]
    texts = [render_chatml([*row["prompt"], *row["completion"]], add_generation_prompt=False) for row in rows]
    texts += [render_prompt(task, render_exchange(text, text)) for task in Task for text in hostile_texts()]
    assert len(texts) > 3300
    differing = [text for text in texts if tokenizer(text)["input_ids"] != engine.model.tokenize(text)]
    assert differing == []
