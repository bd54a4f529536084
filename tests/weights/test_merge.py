"""Merging: base + adapter and the merged folder are the same function, and the folder is complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from observer.errors import ObserverError
from observer.prompts import CHAT_TEMPLATE, IM_END
from observer.weights.merge import merge_adapter
from tests.conftest import make_tiny_model

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[5, 80, 33, 200, 7, 12]])


def save_adapter(base: Path, folder: Path, *, spread: float = 0.05, **settings: Any) -> Path:
    """An adapter whose weights are random instead of trained."""
    torch.manual_seed(1)
    options: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL_LINEAR,
        "task_type": "CAUSAL_LM",
    } | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, spread)
    model.save_pretrained(str(folder))
    return folder


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "o_proj"], "r": 2}])
def test_merged_logits_are_those_of_base_and_adapter(tmp_path: Path, tiny_model: Path, settings: dict) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", **settings)
    merge_adapter(adapter, tiny_model, tmp_path / "merged", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = logits_of(base)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    expected = logits_of(PeftModel.from_pretrained(base, adapter))
    assert (expected - before).abs().max() > 0.05
    torch.testing.assert_close(merged, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_merged_folder_is_whole_and_ours(tmp_path: Path, is_tied: bool) -> None:
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=is_tied)
    report = merge_adapter(save_adapter(base, tmp_path / "adapter"), base, tmp_path / "merged")
    assert (report.n_modules, report.n_changed) == (14, 14)
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    loading: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)[1]  # type: ignore[index]
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert ("lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")) is not is_tied
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == CHAT_TEMPLATE and tokenizer.eos_token == IM_END
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert tokenizer.eos_token_id in generation["eos_token_id"] and not generation.get("do_sample")


def test_weights_without_an_adapter_stay_as_they_are_bit_for_bit(tmp_path: Path, tiny_model: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", target_modules=["v_proj"])
    merge_adapter(adapter, tiny_model, tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "merged"))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == ("v_proj" not in name)


def test_a_half_precision_base_is_merged_in_float32_and_rounded_once(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, base)
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    assert merge_adapter(adapter, base, tmp_path / "merged").dtype == "torch.bfloat16"
    weight = "model.layers.1.mlp.down_proj.weight"
    lora = load_file(adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.model.layers.1.mlp.down_proj.lora_{side}.weight"] for side in "AB")
    exact = load_file(base / "model.safetensors")[weight].float() + 2.0 * b @ a
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")[weight], exact.bfloat16())


def test_an_adapter_that_changes_nothing_is_refused_and_nothing_is_written(tmp_path: Path, tiny_model: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", spread=0.0)
    with pytest.raises(ObserverError, match="changes no weight"):
        merge_adapter(adapter, tiny_model, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 1}
    config["layer_types"] = config.get("layer_types", [])[:1]
    from safetensors.torch import save_file

    weights = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ObserverError, match=r"module model.layers.1.* is not in"):
        merge_adapter(adapter, base, tmp_path / "merged")


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}])
def test_an_adapter_that_is_not_plain_lora_is_refused(tmp_path: Path, tiny_model: Path, settings: dict) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", **settings)
    with pytest.raises(ObserverError, match="cannot be merged here"):
        merge_adapter(adapter, tiny_model, tmp_path / "merged")


def test_an_adapter_with_half_a_module_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    from safetensors.torch import save_file

    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ObserverError, match="lacks lora_A or lora_B"):
        merge_adapter(adapter, tiny_model, tmp_path / "merged")
