"""Fixtures shared by the tests: a real tokenizer and a tiny real model, made once a session."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from observer.backends.hf import HfBackend
    from observer.engine.engine import Engine

settings.register_profile("no-deadline", deadline=None)  # timings are no test: machines are shared
settings.load_profile("no-deadline")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored
if n_threads := os.environ.get("OMP_NUM_THREADS"):
    # llama.cpp asks for a thread on every core all the same, and those of two processes wait for one another, spinning.
    os.environ.setdefault("OMP_THREAD_LIMIT", n_threads)

TEXTS = [
    '{"entities":[{"name":"User","type":"Person"}],"relationships":[{"subject":"User","predicate":"WORKS_AT"}]}',
    "I just moved to Lisbon and work at Siemens with my sister Ana. USER: hello ASSISTANT: nice to meet you",
    "DISCARD STORE IMPORTANT ongoing completed future Café naïve 東京 🙂 def f(x): return x",
] * 4


def make_tiny_model(
    folder: Path, *, tie_word_embeddings: bool = True, model_type: str = "qwen3", pre: str = "qwen2", **config: Any
) -> Path:
    """Save a random 2-layer model with hidden and ffn sizes divisible by 256, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from observer.weights.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(TEXTS, 512, pre)
    values = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **({} if model_type == "qwen2" else {"head_dim": 64}),
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tie_word_embeddings,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    } | config
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0, 0.5)  # transformers begins with zeros, which would hide a bias that is left out
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes, none is left alone at the end with a file that takes minutes: those come first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -n_slow[item.path])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of its own."""
    return make_tiny_model(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from observer.export.gguf.write import write_gguf

    return write_gguf(tiny_model, tmp_path_factory.mktemp("tiny-gguf") / "tiny-f16.gguf", name="tiny")


@pytest.fixture(scope="session")
def nano_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed nano base, whose answers make sense, as an f32 GGUF: its weights as transformers computes them."""
    from observer.export.gguf.write import write_gguf
    from observer.paths import NANO_BASE, PROJECT_ROOT

    return write_gguf(PROJECT_ROOT / NANO_BASE, tmp_path_factory.mktemp("nano") / "nano-f32.gguf", "f32", name="nano")


@pytest.fixture(scope="session")
def engine(nano_gguf: Path) -> Iterator[Engine]:
    """The nano base in llama.cpp."""
    from observer.engine.engine import Engine

    with Engine(nano_gguf, n_threads=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def hf() -> Iterator[HfBackend]:
    """The nano base in transformers."""
    from observer.backends.hf import HfBackend
    from observer.paths import NANO_BASE, PROJECT_ROOT

    with HfBackend(PROJECT_ROOT / NANO_BASE, n_threads=1) as backend:
        yield backend


def hostile_texts() -> list[str]:
    """The messages of `hostile.txt`: parted by lines of `%%`, with `⟦U+0000⟧` for what an editor would not show."""
    page = (Path(__file__).parent / "support" / "hostile.txt").read_text(encoding="utf-8")
    page = re.sub("⟦U\\+([0-9A-F]+)⟧", lambda match: chr(int(match.group(1), 16)), page)
    return page.removesuffix("\n").split("\n%%\n")
