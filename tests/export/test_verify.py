"""A written GGUF is opened again and compared with its model; every way of being wrong has its own check."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
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
from observer.prompts import CHAT_TEMPLATE
from observer.weights.gguf_header import read_header
from tests.support.models import Spoil, edit_json, edit_weights


def change_weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    return edit_weights(lambda weights: weights.update({name: change(weights[name])}))


@pytest.fixture
def ending(copy: Path) -> Path:
    """All logits are 0, and id 0 is <|endoftext|>: the likeliest answer is none."""
    change_weight("model.norm.weight", torch.zeros_like)(copy)
    return copy


# The file alone.


def test_every_wrong_key_and_tensor_is_named(tiny_gguf: Path) -> None:
    header = read_header(tiny_gguf)
    metadata = header.metadata | {
        "general.file_type": 7, "tokenizer.chat_template": "{{ tools }}", "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.pre": "gpt-2",
    }  # fmt: skip
    types = header.tensor_types | {"extra": "F16", "output_norm.weight": "F16", "token_embd.weight": "Q4_0"}
    types.pop("blk.1.attn_q.weight")
    shapes = header.tensor_shapes | {"extra": (2, 2)}
    wrong = replace(header, metadata=metadata, tensor_types=types, tensor_shapes=shapes)
    assert sorted(header_faults(wrong, "f16")) == [
        "end of answer is '<|endoftext|>', not '<|im_end|>'",
        "general.file_type is 7, not 1",
        "tensor blk.1.attn_q.weight is missing",
        "tensor extra is not one of a qwen3 model",
        "tensor output_norm.weight is F16, not F32",
        "tensor token_embd.weight is Q4_0, not F16",
        f"tokenizer.chat_template is '{{{{ tools }}}}', not {CHAT_TEMPLATE!r}",
        "tokenizer.ggml.pre is 'gpt-2', not one of ours",
    ]


def test_a_file_of_another_type_a_cut_one_and_weights_that_are_not_finite_are_refused(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(ObserverError, match="file_type is 1, not 7"):
        verify_gguf(tiny_gguf, expected_file_type="q8_0")
    path, data = tmp_path / "bad.gguf", tiny_gguf.read_bytes()
    not_finite = b"\xff" * 1024  # of output_norm.weight, the last tensor
    for content, message in ((data[:-1000], "cannot load it"), (data[:-1024] + not_finite, "not finite")):
        path.write_bytes(content)
        with pytest.raises(ObserverError, match=message):
            verify_gguf(path, expected_file_type="f16")


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


def test_another_rope_base_shows_in_the_logits(tiny_gguf: Path, copy: Path) -> None:
    edit_json("config.json", rope_parameters={"rope_type": "default", "rope_theta": 100.0})(copy)
    assert check_logits(LlamaModel(tiny_gguf), Reference(copy), "f16").outcome is Outcome.FAILED


def test_one_layer_of_other_weights_shows_in_the_logits(tiny_gguf: Path, copy: Path) -> None:
    change_weight("model.layers.1.self_attn.v_proj.weight", lambda weight: weight.flip(0))(copy)
    assert check_logits(LlamaModel(tiny_gguf), Reference(copy), "f16").outcome is Outcome.FAILED


def test_logits_of_a_small_type_are_told_without_a_limit(tiny_gguf: Path, copy: Path) -> None:
    change_weight("model.layers.1.self_attn.v_proj.weight", lambda weight: weight.flip(0))(copy)
    check = check_logits(LlamaModel(tiny_gguf), Reference(copy), "q2_k")
    assert check.outcome is Outcome.PASSED and "allowed" not in check.found


def test_another_tokenizer_shows_in_the_ids(tiny_gguf: Path, copy: Path) -> None:
    edit_json("tokenizer.json", normalizer={"type": "Lowercase"})(copy)
    check = check_tokens(LlamaModel(tiny_gguf), Reference(copy))
    assert check.outcome is Outcome.FAILED and "the first that differs" in check.found


def test_an_end_that_the_file_has_lost_is_a_fault(tiny_gguf: Path, ending: Path) -> None:
    with Engine(tiny_gguf) as engine:
        check = check_endings(engine, Reference(ending))
    assert check.outcome is Outcome.FAILED
    assert "the model in transformers ends 10 of the others" in check.found


def test_answers_that_end_pass_without_loading_the_model(ending: Path, tmp_path: Path) -> None:
    reference = Reference(ending)
    with Engine(write_gguf(ending, tmp_path / "ending.gguf", name="x")) as engine:
        check = check_endings(engine, reference)
    assert check == Check("endings", Outcome.PASSED, "10 of 10 greedy answers end within 256 tokens")
    assert "model" not in vars(reference)


def test_weights_are_compared_with_the_base(tiny_model: Path, untied_model: Path, copy: Path) -> None:
    assert check_changed(tiny_model, None).outcome is Outcome.SKIPPED
    assert check_changed(copy, tiny_model).outcome is Outcome.FAILED
    name = "model.layers.1.mlp.up_proj.weight"
    change_weight(name, lambda weight: weight + 1e-6)(copy)
    assert check_changed(copy, tiny_model) == Check("changed", Outcome.PASSED, f"{name} differs from the base's")
    found = check_changed(untied_model, tiny_model)
    assert found.outcome is Outcome.FAILED and "lm_head.weight is not in" in found.found


def test_the_same_weights_in_another_precision_are_the_same(tiny_model: Path, copy: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in load_file(tiny_model / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    rounded = Path(shutil.copytree(copy, copy.parent / "rounded"))
    save_file({name: weight.float() for name, weight in weights.items()}, rounded / "model.safetensors")
    assert check_changed(rounded, copy).outcome is Outcome.FAILED
