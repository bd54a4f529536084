"""The shipped form of an adapter: half the bytes, the same model but for rounding, nothing of this machine in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from observer.config import load_config
from observer.errors import ObserverError
from observer.export.light_adapter import main
from observer.export.source import find_source, run_of
from observer.paths import PROJECT_ROOT
from observer.runs.finished_run import read_run
from observer.weights.checkpoint import list_tensors, read_shape
from observer.weights.merge import merge_adapter, read_lora
from tests.support.tiny_runs import write_tiny_run
from tests.weights.test_merge import logits_of, save_adapter


def test_it_is_half_as_large_and_answers_as_the_run_s_own(tiny_model: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "outputs" / "tiny", tmp_path / "models" / "tiny-observer"
    save_adapter(tiny_model, root / "adapter")
    shutil.copy(write_tiny_run(tmp_path, tiny_model), root / "config.yaml")
    assert main([str(root), str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "config.yaml"}
    full, light = (folder / "adapter_model.safetensors" for folder in (root / "adapter", out))
    assert light.stat().st_size < 0.6 * full.stat().st_size
    assert read_run(root).config.model.base in (out / "adapter_config.json").read_text()
    for name, tensor in load_file(full).items():
        assert torch.equal(load_file(light)[name], tensor.bfloat16()), name
    logits = []
    for adapter in (root / "adapter", out):
        merge_adapter(adapter, tiny_model, tmp_path / "merged")
        logits.append(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")))
        shutil.rmtree(tmp_path / "merged")
    assert (logits[0] - logits[1]).abs().max() < 0.02 * logits[0].std()
    assert find_source(out).name == "tiny-observer"
    assert run_of(out) is not None, "its importance matrix is measured on the rows it was trained on"


def test_of_several_runs_it_is_the_mean(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / "outputs" / name for name in ("first", "second")]
    for spread, root in zip((0.05, 0.2), runs, strict=True):
        save_adapter(tiny_model, root / "adapter", spread=spread)
        shutil.copy(write_tiny_run(tmp_path, tiny_model), root / "config.yaml")
    assert main([*map(str, runs), str(tmp_path / "mean")]) == 0
    first, second = (load_file(root / "adapter" / "adapter_model.safetensors") for root in runs)
    for name, tensor in load_file(tmp_path / "mean" / "adapter_model.safetensors").items():
        assert "lora_A" in name or not torch.equal(first[name], second[name])
        assert torch.equal(tensor, ((first[name] + second[name]) / 2).bfloat16()), name
    save_adapter(tiny_model, runs[0] / "adapter", r=2)
    with pytest.raises(ObserverError, match="first/adapter: other modules, rank or alpha"):
        main([*map(str, runs), str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_the_shipped_adapter_fits_the_base_that_the_set_up_installs() -> None:
    folder = PROJECT_ROOT / "models" / "smollm2-observer"
    recipe = load_config(PROJECT_ROOT / "configs" / "smollm2-further.yaml")
    shipped = load_config(folder / "config.yaml")
    assert shipped.model.model_copy(update={"adapter": recipe.model.adapter}) == recipe.model
    assert (folder / "adapter_model.safetensors").stat().st_size < 20e6
    base = find_source(folder).base
    assert base is not None
    shapes = {tensor.name: tuple(tensor.shape) for tensor in list_tensors(base, read_shape(base))}
    lora = read_lora(folder)
    assert len(lora.modules) == 7 * 30
    for name, (a, b) in lora.modules.items():
        assert shapes[f"{name}.weight"] == (b.shape[0], a.shape[1]), name


def test_a_run_without_a_whole_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    root = tmp_path / "outputs" / "tiny"
    save_adapter(tiny_model, root / "adapter")
    with pytest.raises(ObserverError, match="no run"):
        main([str(root), str(tmp_path / "out")])
    shutil.copy(write_tiny_run(tmp_path, tiny_model), root / "config.yaml")
    (root / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ObserverError, match="no such file"):
        main([str(root), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
