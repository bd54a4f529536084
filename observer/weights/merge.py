"""Adapter + base -> a plain safetensors folder, tensor by tensor: W + scale * B A in float32, then rounded once.

The base is always the 16- or 32-bit one on disk, so an adapter trained over NF4 weights merges without their error.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from observer.errors import ObserverError, raise_all
from observer.files import atomic_path
from observer.weights.base import load_tokenizer
from observer.weights.checkpoint import (
    ModelShape,
    Tensor,
    expected_shapes,
    faults_of_transformers,
    list_tensors,
    open_safetensors,
    read_json_object,
    read_shape,
)
from observer.weights.tokenizer import tokenizer_folder

_LORA_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_WEIGHTS = "adapter_model.safetensors"
HARMLESS = frozenset(
    "auto_mapping base_model_name_or_path corda_config eva_config exclude_modules inference_mode layers_pattern "
    "layers_to_transform loftq_config lora_alpha lora_dropout lora_ga_config megatron_core peft_version "
    "qalora_group_size r revision target_modules task_type use_rslora".split()
)
"""Settings of adapter_config.json that say how it was trained, or are read here; all others are to be off."""
_OFF: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),
}
"""Values with which a setting changes nothing, beside null, false and empty ones. An init that is not here has changed
the base's own weights (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA): B A is no difference to the base on disk."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; `largest_change` is the largest absolute change of one weight."""

    n_modules: int
    n_changed: int
    largest_change: float
    dtype: str


@dataclass(frozen=True)
class Lora:
    """An adapter on disk: its scale, and (A, B) for every module, named as in the base; it adds scale * B A to it."""

    scale: float
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]


def merge_adapter(adapter: Path, base: Path, merged: Path, *, dtype: str | None = None) -> MergeReport:
    """Write the merged model with its tokenizer, chat template and generation config.

    `dtype` None keeps each tensor's stored precision. Raises ObserverError when the adapter is not plain
    LoRA, has a module the base lacks or has in another shape, or changes nothing.
    """
    lora = read_lora(adapter)
    shape = read_shape(base)
    tensors = {tensor.name: tensor for tensor in list_tensors(base, shape)}
    raise_all(misfits(adapter, lora, base, shape))
    weights: dict[str, torch.Tensor] = {}
    changes: list[float] = []
    for name, tensor in tensors.items():
        stored = _read(tensor)
        target = getattr(torch, dtype) if dtype else stored.dtype
        weights[name] = stored.to(target)
        module = name.removesuffix(".weight")
        if module in lora.modules:
            a, b = lora.modules[module]
            weights[name] = (stored.float() + lora.scale * (b @ a)).to(target)
            changes.append((weights[name].float() - stored.float()).abs().max().item())
    assert len(changes) == len(lora.modules)
    check_changed(adapter, changes)
    _save(weights, adapter, base, merged)
    return MergeReport(len(changes), sum(c > 0 for c in changes), max(changes), str(_common_dtype(weights)))


def read_lora(adapter: Path) -> Lora:
    """Read an adapter as PEFT saves it. Raises ObserverError for anything but plain LoRA, whole."""
    config, modules = read_lora_header(adapter)
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    with open_safetensors(adapter / _WEIGHTS, "pt", "train again") as file:
        return Lora(scale, {module: (_side(file, module, "A"), _side(file, module, "B")) for module in modules})


def read_lora_header(adapter: Path) -> tuple[dict[str, Any], list[str]]:
    """Its settings and the modules it changes, no weight being read. Raises as `read_lora` does."""
    config = read_json_object(adapter / "adapter_config.json")
    if unusual := {name: value for name, value in config.items() if not _is_plain(name, value)}:
        convert = ", or save it with save_pretrained(path_initial_model_for_weight_conversion=…)"
        raise ObserverError(
            f"{adapter}: {json.dumps(unusual)[:300]} cannot be merged here, nor written as GGUF; train plain LoRA"
            + convert * ("init_lora_weights" in unusual)
        )
    weights = adapter / _WEIGHTS
    if not weights.is_file():
        raise ObserverError(f"{weights}: no such file; save it again, only safetensors are read")
    shapes: dict[str, dict[str, list[int]]] = {}
    with open_safetensors(weights, "pt", "train again") as file:
        for name in file.keys():  # noqa: SIM118
            match = _LORA_NAME.fullmatch(name)
            if match is None:
                raise ObserverError(f"{weights}: tensor {name[:100]!r} is not plain LoRA")
            shapes.setdefault(match["module"], {})[match["side"]] = file.get_slice(name).get_shape()
    raise_all([f"{weights}: {module} lacks lora_A or lora_B" for module, pair in shapes.items() if len(pair) != 2])
    rank, _ = (_positive(adapter, config, name) for name in ("r", "lora_alpha"))
    for module, pair in shapes.items():
        a, b = pair["A"], pair["B"]
        if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
            raise ObserverError(
                f"{weights}: {module}: lora_A is {tuple(a)}, lora_B {tuple(b)}, r is {rank}; train again"
            )
    return config, list(shapes)


def _side(file: Any, module: str, side: str) -> torch.Tensor:
    return file.get_tensor(f"base_model.model.{module}.lora_{side}.weight").float()


def _is_plain(name: str, value: Any) -> bool:
    value = value.lower() if name == "init_lora_weights" and isinstance(value, str) else value
    return name in HARMLESS or value in (None, False, [], {}, *_OFF.get(name, ()))


def _positive(adapter: Path, config: dict[str, Any], name: str) -> float:
    value = config.get(name)
    if not isinstance(value, int | float) or not 0 < value < 1 << 20:
        raise ObserverError(f"{adapter}: {name} is {str(value)[:40]}, a positive number is expected; train again")
    return value


def misfits(adapter: Path, lora: Lora, base: Path, shape: ModelShape) -> list[str]:
    """A fault for every module that the base, of this shape, lacks or has in another one."""
    expected, faults = expected_shapes(shape), []
    for module, (a, b) in lora.modules.items():
        found, wanted = (b.shape[0], a.shape[1]), expected.get(f"{module}.weight")
        if wanted is None or (module == "lm_head" and shape.is_tied):
            faults.append(f"{adapter}: module {module} is not in {base}; take the base it was trained on")
        elif found != wanted:
            faults.append(f"{adapter}: {module} is {found}, {base} says {wanted}; take the base it was trained on")
    return faults


def check_changed(adapter: Path, changes: list[float]) -> None:
    """Raise ObserverError when the merged model would equal its base, or not be finite."""
    if not all(math.isfinite(change) for change in changes):
        raise ObserverError(f"{adapter}: has weights that are not finite; train again with a lower learning rate")
    if not any(changes):
        raise ObserverError(f"{adapter}: changes no weight of the base; train it for longer before merging")


def _read(tensor: Tensor) -> torch.Tensor:
    with safe_open(tensor.path, framework="pt") as file:
        return file.get_tensor(tensor.name)


def _save(weights: dict[str, torch.Tensor], adapter: Path, base: Path, merged: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    tokenizer = load_tokenizer(tokenizer_folder(adapter, base))
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    with faults_of_transformers(base):
        config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    config.update({"eos_token_id": eos, "pad_token_id": pad, "bos_token_id": None, "use_cache": True})
    config.dtype = _common_dtype(weights)
    generation = GenerationConfig(eos_token_id=list(dict.fromkeys([eos, pad])), pad_token_id=pad, do_sample=False)
    with atomic_path(merged) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(temporary))
        generation.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        list_tensors(temporary, read_shape(temporary))  # every tensor of the architecture, in its shape, or no folder


def _common_dtype(weights: dict[str, torch.Tensor]) -> torch.dtype:
    return max((tensor.dtype for tensor in weights.values()), key=lambda dtype: dtype.itemsize)
