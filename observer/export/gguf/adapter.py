"""A LoRA adapter as GGUF, for servers that put it over a base they already have.

Format: https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py; how it is read:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import gguf
import numpy as np

from observer.errors import raise_all
from observer.files import atomic_path
from observer.weights.checkpoint import ModelShape, gguf_names, pair_rows, read_shape
from observer.weights.merge import Lora, misfits, read_lora


def write_adapter_gguf(adapter: Path, base: Path, out: Path, *, name: str) -> Path:
    """Convert a PEFT folder to float16; of `base` only config.json is read. `name` becomes general.name.

    Raises ObserverError naming every module the base lacks, for anything but plain LoRA, and for an adapter
    that changes nothing.
    """
    lora, shape = read_lora(adapter), read_shape(base)
    _check(adapter, lora, base, shape)
    names = gguf_names(shape)
    with (
        atomic_path(out) as temporary,
        contextlib.closing(gguf.GGUFWriter(temporary, shape.architecture.gguf_name)) as writer,
    ):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(lora))
        for module in sorted(lora.modules):
            a, b = (side.numpy().astype(np.float16) for side in lora.modules[module])
            if shape.architecture.pairs_rows_of(module):
                b = pair_rows(b, shape.key_length)
            writer.add_tensor(f"{names[f'{module}.weight']}.lora_a", a)
            writer.add_tensor(f"{names[f'{module}.weight']}.lora_b", b)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return out


def _alpha(lora: Lora) -> float:
    """llama.cpp scales by alpha / r, so for rsLoRA this is alpha * sqrt(r)."""
    a, _ = next(iter(lora.modules.values()))
    return lora.scale * a.shape[0]


def _check(adapter: Path, lora: Lora, base: Path, shape: ModelShape) -> None:
    faults = misfits(adapter, lora, base, shape)
    for module, (a, b) in lora.modules.items():
        if not (a.isfinite().all() and b.isfinite().all()):
            faults.append(f"{adapter}: {module} is not finite; train again with a lower learning rate")
    if not faults and (lora.scale == 0 or not any(bool((b @ a).any()) for a, b in lora.modules.values())):
        faults.append(f"{adapter}: changes no weight of the base; train it for longer")
    raise_all(faults)
