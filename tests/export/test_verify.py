"""A written GGUF is opened again and compared with its model; every way of being wrong has its own check."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from observer.engine.engine import Engine
from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.export.gguf.against_transformers import (
    Check,
    Outcome,
    Reference,
    check_changed,
    check_endings,
    check_logits,
    check_tokens,
    compare,
)
from observer.export.gguf.verify import header_faults, verify_gguf
from observer.export.gguf.write import write_gguf
from observer.prompts import clean
from observer.weights.gguf_header import read_header
from tests.conftest import make_tiny_model


@pytest.fixture
def other(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "other"))


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_weight(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[name] = change(weights[name])
    save_file(weights, path, metadata={"format": "pt"})


def always_ending(folder: Path) -> Path:
    """All logits are 0, and id 0 is <|endoftext|>: the likeliest answer is none."""
    change_weight(folder, "model.norm.weight", torch.zeros_like)
    return folder


# The file alone.


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_head_of_a_written_file_has_no_faults(tmp_path: Path, is_tied: bool) -> None:
    model = make_tiny_model(tmp_path / "model", tie_word_embeddings=is_tied)
    for file_type in ("f32", "bf16", "q8_0"):
        header = verify_gguf(write_gguf(model, tmp_path / "x.gguf", file_type, name="x"), expected_file_type=file_type)
        assert header.tensor_shapes["blk.1.ffn_down.weight"] == (256, 256)
        assert header.tensor_shapes["token_embd.weight"] == (512, 256)
        assert len(header.tensor_types) == 24 + (not is_tied)


def test_every_wrong_tensor_is_named(tiny_gguf: Path) -> None:
    header = read_header(tiny_gguf)
    types = header.tensor_types | {"extra": "F16", "output_norm.weight": "F16", "token_embd.weight": "Q4_0"}
    types.pop("blk.1.attn_q.weight")
    shapes = header.tensor_shapes | {"extra": (2, 2)}
    assert sorted(header_faults(dataclasses.replace(header, tensor_types=types, tensor_shapes=shapes), "f16")) == [
        "tensor blk.1.attn_q.weight is missing",
        "tensor extra is not one of a qwen3 model",
        "tensor output_norm.weight is F16, not F32",
        "tensor token_embd.weight is Q4_0, not F16",
    ]


def test_a_file_of_another_type_or_end_token_is_refused(tiny_gguf: Path) -> None:
    with pytest.raises(ObserverError, match="file_type is 1, not 7"):
        verify_gguf(tiny_gguf, expected_file_type="q8_0")
    header = read_header(tiny_gguf)
    metadata = header.metadata | {"tokenizer.ggml.eos_token_id": 0}
    assert header_faults(dataclasses.replace(header, metadata=metadata), "f16") == [
        "end of answer is '<|endoftext|>', not '<|im_end|>'"
    ]


# Beside its model.


def test_a_right_file_passes_and_a_model_that_never_ends_is_warned_of(tiny_gguf: Path, tiny_model: Path) -> None:
    checks = {check.name: check for check in compare(tiny_gguf, Reference(tiny_model), "f16")}
    assert {name: check.outcome for name, check in checks.items()} == {
        "tokens": Outcome.PASSED,
        "logits": Outcome.PASSED,
        "endings": Outcome.WARNED,
    }
    assert checks["tokens"].found.startswith("96 of 96 ")
    assert "nor does the model end them in transformers" in checks["endings"].found


def test_another_rope_base_shows_in_the_logits(tiny_gguf: Path, other: Path) -> None:
    change_json(other / "config.json", lambda config: config["rope_parameters"].update(rope_theta=100.0))
    assert check_logits(LlamaModel(tiny_gguf), Reference(other), "f16").outcome is Outcome.FAILED


def test_one_layer_of_other_weights_shows_in_the_logits(tiny_gguf: Path, other: Path) -> None:
    change_weight(other, "model.layers.1.self_attn.v_proj.weight", lambda weight: weight.flip(0))
    assert check_logits(LlamaModel(tiny_gguf), Reference(other), "f16").outcome is Outcome.FAILED


def test_logits_of_a_small_type_are_told_without_a_limit(tiny_gguf: Path, other: Path) -> None:
    change_weight(other, "model.layers.1.self_attn.v_proj.weight", lambda weight: weight.flip(0))
    check = check_logits(LlamaModel(tiny_gguf), Reference(other), "q2_k")
    assert check.outcome is Outcome.PASSED and "allowed" not in check.found


def test_another_tokenizer_shows_in_the_ids(tiny_gguf: Path, other: Path) -> None:
    change_json(other / "tokenizer.json", lambda tokenizer: tokenizer["model"]["merges"].clear())
    check = check_tokens(LlamaModel(tiny_gguf), Reference(other))
    assert check.outcome is Outcome.FAILED and "the first that differs" in check.found


def test_an_end_that_the_file_has_lost_is_a_fault(tiny_gguf: Path, other: Path) -> None:
    with Engine(tiny_gguf) as engine:
        check = check_endings(engine, Reference(always_ending(other)))
    assert check.outcome is Outcome.FAILED
    assert "the model in transformers ends 10 of the others" in check.found


def test_answers_that_end_pass_without_loading_the_model(other: Path, tmp_path: Path) -> None:
    reference = Reference(always_ending(other))
    with Engine(write_gguf(other, tmp_path / "ending.gguf", name="x")) as engine:
        check = check_endings(engine, reference)
    assert check == Check("endings", Outcome.PASSED, "10 of 10 greedy answers end within 256 tokens")
    assert "model" not in vars(reference)


def test_weights_are_compared_with_the_base(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    assert check_changed(tiny_model, None).outcome is Outcome.SKIPPED
    assert check_changed(other, tiny_model).outcome is Outcome.FAILED
    name = "model.layers.1.mlp.up_proj.weight"
    change_weight(other, name, lambda weight: weight + 1e-6)
    assert check_changed(other, tiny_model) == Check("changed", Outcome.PASSED, f"{name} differs from the base's")
    untied = make_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    found = check_changed(untied, tiny_model)
    assert found.outcome is Outcome.FAILED and "lm_head.weight is not in" in found.found


def test_the_same_weights_in_another_precision_are_the_same(tiny_model: Path, other: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in load_file(tiny_model / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    rounded = Path(shutil.copytree(other, other.parent / "rounded"))
    save_file({name: weight.float() for name, weight in weights.items()}, rounded / "model.safetensors")
    assert check_changed(rounded, other).outcome is Outcome.FAILED


def test_the_built_in_texts_survive_cleaning_as_hostile() -> None:
    from observer.export.gguf.against_transformers import HOSTILE_TEXTS

    assert len(set(HOSTILE_TEXTS)) == len(HOSTILE_TEXTS) >= 20
    assert any(clean(text) != text for text in HOSTILE_TEXTS)
