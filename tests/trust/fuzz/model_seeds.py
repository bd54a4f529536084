"""What fuzzing of models' files starts from: the smallest that our code takes."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from observer.paths import NANO_BASE, PROJECT_ROOT
from observer.weights.checkpoint import ModelShape, expected_shapes, read_shape
from tests.trust.fuzz.files import scratch
from tests.trust.fuzz.seeds import as_json, joined


def gguf_files() -> list[bytes]:
    import numpy as np
    from gguf import GGUFWriter

    from observer.export.quantize.imatrix_file import Imatrix, write_imatrix

    path = scratch() / "seed.gguf"
    writer = GGUFWriter(path, "qwen3")
    writer.add_name("seed")
    writer.add_array("tokens", ["a", "b"])
    writer.add_array("scores", [0.5, 1.5])
    writer.add_tensor("token_embd.weight", np.zeros((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sums = {"blk.0.ffn_down.weight": np.ones(4, np.float32)}
    imatrix = write_imatrix(Imatrix(sums, dict.fromkeys(sums, 3), 1), scratch() / "imatrix.gguf")
    nested = struct.pack("<IIQQQ1sIIQ", 0x46554747, 3, 0, 1, 1, b"k", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 30
    return [path.read_bytes(), imatrix.read_bytes(), nested]


def checkpoints() -> list[bytes]:
    config = json.loads((PROJECT_ROOT / NANO_BASE / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "vocab_size": 4, "hidden_size": 2, "intermediate_size": 2, "head_dim": 2}
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    tensors, start = {}, 0
    for name, shape in expected_shapes(_shape(config)).items():
        tensors[name] = _entry(shape, start)
        start = tensors[name]["data_offsets"][1]
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    old = config | {"rope_theta": 1e6, "rope_scaling": None}
    old.pop("rope_parameters", None)
    return [joined(json.dumps(config), json.dumps(tensors)), joined(json.dumps(old), json.dumps(tensors)),
            joined(json.dumps(config), "index" + json.dumps(index), json.dumps(tensors))]  # fmt: skip


def _shape(config: dict[str, Any]) -> ModelShape:
    folder = scratch() / "seed-model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(as_json(config))
    return read_shape(folder)


def tokenizers() -> list[bytes]:
    value = json.loads((PROJECT_ROOT / NANO_BASE / "tokenizer.json").read_text(encoding="utf-8"))
    value["model"]["vocab"] = {token: number for number, token in enumerate(list(value["model"]["vocab"])[:40])}
    value["model"]["merges"] = []
    value["added_tokens"] = [token | {"id": 40 + n} for n, token in enumerate(value["added_tokens"])]
    return [as_json(value)]


def adapters() -> list[bytes]:
    config = {"peft_type": "LORA", "base_model_name_or_path": "x", "r": 2, "lora_alpha": 4, "use_rslora": False}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): _entry([2, 4], 0), name.format("B"): _entry([4, 2], 32)}
    return [joined(json.dumps(config), json.dumps(tensors))]


def _entry(shape: Sequence[int], start: int) -> dict[str, Any]:
    size = 4
    for length in shape:
        size *= length
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + size]}
