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
from observer.weights.merge import HARMLESS, merge_adapter, read_lora
from tests.conftest import make_tiny_model
from tests.support.models import edit_weights, save_adapter

IDS = torch.tensor([[5, 80, 33, 200, 7, 12]])


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
def test_the_merged_folder_is_whole_and_ours(
    tmp_path: Path, tiny_model: Path, untied_model: Path, is_tied: bool
) -> None:
    base = tiny_model if is_tied else untied_model
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
    base = make_tiny_model(tmp_path / "base", num_hidden_layers=1)
    with pytest.raises(ObserverError, match=r"module model.layers.1.* is not in"):
        merge_adapter(adapter, base, tmp_path / "merged")


NOT_PLAIN: dict[str, list[Any]] = {
    "peft_type": ["ADALORA", "LOHA", "IA3", "OFT"],
    "bias": ["all", "lora_only"],
    "init_lora_weights": ["pissa", "pissa_niter_16", "PISSA", "olora", "corda", "loftq", "lora_ga", "of-tomorrow", 3],
    "use_dora": [True, 1, "true"],
    "lora_bias": [True],
    "fan_in_fan_out": [True],
    "rank_pattern": [{"q_proj": 2}],
    "alpha_pattern": [{"q_proj": 2}],
    "modules_to_save": [["embed_tokens"], "lm_head"],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}],
    "target_parameters": [["mlp.experts.gate_up_proj"]],
    "layer_replication": [[[0, 1], [0, 2]]],
    "alora_invocation_tokens": [[1, 5]],
    "use_qalora": [True],
    "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 3}],
    "kasa_config": [{"beta": 1e-4}],
    "velora_config": [{"scale": 1.0}],
    "monteclora_config": [{"num_samples": 2}],
    "megatron_config": [{"hidden_size": 8}],
    "ensure_weight_tying": [True],
    "a_setting_of_tomorrow": [True, 4, "on", [0]],
}
"""Every setting of an adapter's config with which its function is more, or other, than W + scale * B A."""


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NOT_PLAIN.items() for value in values])
def test_a_setting_that_is_not_known_to_be_plain_is_refused_in_one_line(
    tmp_path: Path, plain_adapter: Path, name: str, value: Any
) -> None:
    with pytest.raises(ObserverError, match="cannot be merged here, nor written as GGUF") as raised:
        read_lora(with_settings(plain_adapter, tmp_path, {name: value}))
    assert json.dumps({name: value}) in str(raised.value) and "\n" not in str(raised.value)
    assert ("path_initial_model_for_weight_conversion" in str(raised.value)) == (name == "init_lora_weights")


def test_every_setting_that_peft_saves_is_refused_or_known_to_leave_the_weights_alone(
    tmp_path: Path, plain_adapter: Path
) -> None:
    saved = json.loads((plain_adapter / "adapter_config.json").read_text())
    refused = NOT_PLAIN.keys() - {"a_setting_of_tomorrow"}
    for name in saved.keys() - refused:
        assert name in HARMLESS, f"PEFT saves {name}: is an adapter that sets it still plain LoRA?"
    assert not refused & HARMLESS
    defaults = {name: value for name, value in saved.items() if name not in ("r", "lora_alpha")}
    off = {name: ([], {}, False, None)[n % 4] for n, name in enumerate(sorted(refused - {"peft_type", "bias"}))}
    read_lora(with_settings(plain_adapter, tmp_path, defaults | off))


@pytest.mark.parametrize("init", [True, False, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_as_it_is_is_plain(tmp_path: Path, plain_adapter: Path, init: Any) -> None:
    read_lora(with_settings(plain_adapter, tmp_path, {"init_lora_weights": init}))


def test_a_pissa_adapter_that_peft_has_converted_merges_to_what_was_trained(tmp_path: Path, tiny_model: Path) -> None:
    options: dict[str, Any] = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(**options, init_lora_weights="pissa", task_type="CAUSAL_LM"),
    )
    config: Any = model.peft_config["default"]
    config.init_lora_weights = True
    model.save_pretrained(str(tmp_path / "start"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    config.init_lora_weights = "pissa"
    trained = logits_of(model)
    model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    merge_adapter(tmp_path / "plain", tiny_model, tmp_path / "merged", dtype="float32")
    merged = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, trained, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [3, 8])
def test_a_rank_that_is_not_the_stored_one_is_refused(tmp_path: Path, plain_adapter: Path, rank: int) -> None:
    with pytest.raises(ObserverError, match=rf"lora_A is \(4, 256\).* r is {rank}"):
        read_lora(with_settings(plain_adapter, tmp_path, {"r": rank}))


@pytest.fixture(scope="module")
def plain_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_model, tmp_path_factory.mktemp("plain") / "adapter", target_modules=["v_proj"])


def with_settings(adapter: Path, folder: Path, settings: dict[str, Any]) -> Path:
    changed = Path(shutil.copytree(adapter, folder / "changed"))
    path = changed / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return changed


def test_an_adapter_with_half_a_module_is_refused(tmp_path: Path, plain_adapter: Path) -> None:
    half = Path(shutil.copytree(plain_adapter, tmp_path / "half"))
    edit_weights(lambda weights: weights.pop(max(weights)), "adapter_model.safetensors")(half)
    with pytest.raises(ObserverError, match="lacks lora_A or lora_B"):
        read_lora(half)
