"""Every architecture of the table goes the whole way: plan, step, merge, GGUF, importance matrix, adapter, answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from observer.config import Config
from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.export.gguf.adapter import write_adapter_gguf
from observer.export.gguf.verify import verify_gguf
from observer.export.gguf.write import write_gguf
from observer.export.quantize.imatrix import compute_imatrix
from observer.prompts import Task, render_exchange, render_prompt
from observer.training.batching.forest import collate, pad
from observer.training.batching.loss import completion_nll
from observer.training.device import Runtime
from observer.training.model import attach_lora, load_base
from observer.training.planning.speed import measure_speed
from observer.weights.architectures import ARCHITECTURES
from observer.weights.base import check_base, load_tokenizer
from observer.weights.checkpoint import config_values, expected_shapes, gguf_names, pair_rows, read_shape, unpair_rows
from observer.weights.gguf_header import read_header
from observer.weights.merge import merge_adapter
from observer.weights.size import count_parameters
from tests.conftest import make_tiny_model
from tests.support.models import ALL_LINEAR, assert_same_ids, llama_logits, save_adapter
from tests.weights.test_merge import logits_of

SCALED_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3"},
    "qwen2": {"model_type": "qwen2"},
    "qwen2 untied": {"model_type": "qwen2", "tie_word_embeddings": False},
    "llama": {"model_type": "llama", "pre": "smollm"},
    "llama untied, scaled": {
        "model_type": "llama", "pre": "llama-bpe", "tie_word_embeddings": False, "rope_parameters": SCALED_ROPE,
        "num_attention_heads": 8, "head_dim": 32,
    },
}  # fmt: skip
ON_CPU = Runtime("cpu", "transformers", "float32", ())
PROMPT = render_prompt(Task.EXTRACT, render_exchange("I moved to Lisbon with my sister Ana in May", "Nice!"))

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_tiny_model(tmp_path_factory.mktemp(kind.partition(" ")[0]), **KINDS[kind])
        return made[kind]

    return make


each_kind = pytest.mark.parametrize("kind", KINDS)


def test_every_architecture_of_the_table_is_tested_here() -> None:
    assert {kind["model_type"] for kind in KINDS.values()} == ARCHITECTURES.keys()


@each_kind
def test_the_shape_counts_and_plans_the_model(make: Make, kind: str) -> None:
    folder = make(kind)
    check_base(folder)
    shape, model = read_shape(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert count_parameters(shape) == sum(p.numel() for p in model.parameters())
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert expected_shapes(shape) == sizes | {"lm_head.weight": (512, 256)}
    speed = measure_speed(Config(), ON_CPU, shape, n_tokens=16)
    assert speed is not None and speed.token_s > 0


@each_kind
def test_the_shape_goes_through_config_json_and_back(make: Make, kind: str, tmp_path: Path) -> None:
    shape = read_shape(make(kind))
    values = config_values(shape) | {"model_type": shape.model_type}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_shape(tmp_path) == shape


@each_kind
def test_rows_that_share_an_instruction_have_the_loss_of_padded_rows(make: Make, kind: str) -> None:
    folder = make(kind)
    config = Config.model_validate({"lora": {"r": 4, "target_modules": ALL_LINEAR}})
    model = attach_lora(load_base(config, ON_CPU, folder), config, ON_CPU)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    shared = list(range(5, 30))
    rows = [shared + list(range(40, 40 + length)) for length in (3, 9, 6)]
    batch = collate([{"input_ids": row, "labels": [-100] * 27 + row[27:]} for row in rows])
    shared_nll = completion_nll(model, batch)
    shared_nll.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "lora_B" in n)
    padded = pad(batch)
    with torch.no_grad():
        logits = model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits
    hidden = logits.flatten(0, 1).index_select(0, padded.place).index_select(0, batch["scored"])
    targets = batch["labels"][0].index_select(0, batch["scored"] + 1)
    expected = torch.nn.functional.cross_entropy(hidden, targets, reduction="none")
    torch.testing.assert_close(shared_nll.detach(), expected, atol=1e-4, rtol=1e-4)


@each_kind
def test_the_merged_model_s_gguf_computes_what_transformers_does(make: Make, kind: str, tmp_path: Path) -> None:
    base = make(kind)
    adapter = save_adapter(base, tmp_path / "adapter")
    merge_adapter(adapter, base, tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (logits_of(merged) - logits_of(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.05
    path = write_gguf(tmp_path / "merged", tmp_path / "merged.gguf", "f32", name="tiny")
    verify_gguf(path, expected_file_type="f32")
    tokens = LlamaModel(path).tokenize(PROMPT)
    with torch.no_grad():
        expected = merged(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(llama_logits(path, tokens) - expected).max() < 4e-3
    # The same adapter over the base's own GGUF.
    over = write_adapter_gguf(adapter, base, tmp_path / "adapter.gguf", name="ours")
    found = llama_logits(write_gguf(base, tmp_path / "base.gguf", "f32", name="tiny"), tokens, over)
    assert np.abs(found - expected).max() < 4e-3


@each_kind
def test_importance_matrix_knows_its_layers(make: Make, kind: str) -> None:
    folder = make(kind)
    names = gguf_names(read_shape(folder))
    linear = {names[name] for name in names if "_proj.weight" in name}
    imatrix = compute_imatrix(folder, [list(range(3, 20))])
    assert imatrix.sums.keys() == linear


@each_kind
def test_token_ids_are_llama_cpp_s_on_hostile_text(make: Make, kind: str, tmp_path: Path) -> None:
    folder = make(kind)
    path = write_gguf(folder, tmp_path / "model.gguf", "q8_0", name="tiny")
    assert read_header(path).metadata["tokenizer.ggml.pre"] == KINDS[kind].get("pre", "qwen2")
    assert_same_ids(AutoTokenizer.from_pretrained(folder), LlamaModel(path))


def test_paired_rows_are_those_of_the_halves_of_a_head() -> None:
    rows = np.arange(8)[:, None] * np.ones((8, 2), int)  # two heads of four
    assert pair_rows(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert np.array_equal(unpair_rows(pair_rows(rows, 4), 4), rows)


def test_llama_3_s_end_of_a_text_is_its_padding(make: Make, tmp_path: Path) -> None:
    tokenizer = json.loads((make("llama") / "tokenizer.json").read_text().replace("<|endoftext|>", "<|end_of_text|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert load_tokenizer(tmp_path).pad_token == "<|end_of_text|>"


def test_weights_and_tokenizers_that_no_gguf_holds_are_refused_with_the_base(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ObserverError, match=r"self_attn.q_proj.bias has no GGUF name"):
        check_base(make_tiny_model(tmp_path / "biases", model_type="llama", pre="smollm", attention_bias=True))
    tokenizer = json.loads((make("llama") / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"].pop(0)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ObserverError, match="no byte-level BPE of the kinds qwen2, smollm, llama-bpe"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("qwen2", {"head_dim": 32}, "'head_dim' is 32, hidden size / heads is 64"),
        ("qwen2", {"rope_parameters": SCALED_ROPE}, "rope_type 'llama3' is not converted"),
        ("llama", {"rope_parameters": SCALED_ROPE | {"factor": -1}}, "rope_parameters: 'factor' is -1"),
        ("llama", {"rope_parameters": SCALED_ROPE | {"low_freq_factor": 4.0}}, "they must differ"),
        ("llama", {"head_dim": 63}, "'head_dim' is 63; an even number"),
        ("qwen2", {"use_sliding_window": True}, "'use_sliding_window' is True; llama.cpp computes with False alone"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' is .* with 'full_att"),
        ("llama", {"hidden_act": "gelu"}, "'hidden_act' is gelu; llama.cpp computes with 'silu' alone"),
        ("llama", {"model_type": "gpt2"}, "model_type is 'gpt2'; take a model of type qwen3, qwen2, llama"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    make: Make, kind: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = json.loads((make(kind) / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ObserverError, match=message):
        read_shape(tmp_path)


def test_a_llama_config_of_before_says_neither_key_heads_nor_head_size(make: Make, tmp_path: Path) -> None:
    config = json.loads((make("llama") / "config.json").read_text())
    config |= {"num_key_value_heads": None, "head_dim": None, "rope_parameters": None, "rope_theta": 5e5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(tmp_path)
    assert (shape.head_count_kv, shape.key_length, shape.rope_freq_base) == (4, 64, 5e5)
