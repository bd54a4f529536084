"""Base GGUF + adapter GGUF in llama.cpp is the merged model; an adapter that fits no base of it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from observer.errors import ObserverError
from observer.export.gguf.adapter import write_adapter_gguf
from observer.export.gguf.write import write_gguf
from observer.paths import NANO_BASE, PROJECT_ROOT
from observer.weights.gguf_header import read_header
from observer.weights.merge import merge_adapter
from tests.support.models import llama_logits, save_adapter

BASE = PROJECT_ROOT / NANO_BASE
IDS = [5, 80, 33, 200, 7, 12, 911, 45, 1800, 3, 64, 700]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "o_proj"], "r": 2}])
def test_base_and_adapter_give_the_merged_models_logits(
    nano_gguf: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Both in llama.cpp: its cache of keys and values is in 16 bits, which alone sets it 0.02 apart from torch."""
    adapter = save_adapter(BASE, tmp_path / "adapter", **({"r": 8, "lora_alpha": 16, "spread": 0.02} | settings))
    out = write_adapter_gguf(adapter, BASE, tmp_path / "adapter.gguf", name="ours")
    merge_adapter(adapter, BASE, tmp_path / "merged", dtype="float32")
    merged = llama_logits(write_gguf(tmp_path / "merged", tmp_path / "merged.gguf", "f32", name="merged"), IDS)
    assert np.abs(merged - llama_logits(nano_gguf, IDS)).max() > 0.3
    assert np.abs(merged - llama_logits(nano_gguf, IDS, out)).max() < 0.01


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    adapter = save_adapter(BASE, tmp_path / "adapter", use_rslora=True, r=4, lora_alpha=8, target_modules=["down_proj"])
    header = read_header(write_adapter_gguf(adapter, BASE, tmp_path / "adapter.gguf", name="ours"))
    metadata = {key: value for key, value in header.metadata.items() if not key.startswith("GGUF")}
    assert metadata == {
        "general.architecture": "qwen3", "general.type": "adapter", "general.name": "ours",
        "adapter.type": "lora", "adapter.lora.alpha": 16.0,
    }  # fmt: skip
    shapes = {
        f"blk.{n}.ffn_down.weight.lora_{s}": size for n in range(4) for s, size in (("a", (4, 768)), ("b", (256, 4)))
    }
    assert header.tensor_shapes == shapes
    assert set(header.tensor_types.values()) == {"F16"}


def test_another_models_adapter_is_refused_with_every_module(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(BASE, tmp_path / "adapter", target_modules=["gate_proj"])
    with pytest.raises(ObserverError) as raised:
        write_adapter_gguf(adapter, tiny_model, tmp_path / "adapter.gguf", name="ours")
    faults = str(raised.value).splitlines()
    assert len(faults) == 4
    assert "layers.0.mlp.gate_proj is (768, 256), " in faults[0] and "says (256, 256)" in faults[0]
    assert "layers.3.mlp.gate_proj is not in " in faults[3]


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ObserverError, match="changes no weight"):
        write_adapter_gguf(save_adapter(BASE, tmp_path / "a", spread=0), BASE, tmp_path / "adapter.gguf", name="ours")
