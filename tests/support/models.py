"""Adapters that nobody trained, folders that somebody changed, and what llama.cpp makes of a GGUF: logits and ids."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from observer.engine.llama_context import BatchToken, LlamaContext
from observer.engine.llama_model import LlamaModel
from observer.prompts import IM_END, IM_START, Task, render_exchange, render_prompt
from tests.conftest import hostile_texts

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Spoil = Callable[[Path], object]
"""Changes a folder."""


def save_adapter(base: Path, folder: Path, *, spread: float = 0.05, **settings: Any) -> Path:
    """An adapter whose weights are random instead of trained."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(options | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, spread)
    model.save_pretrained(str(folder))
    return folder


def edit_json(name: str, **values: object) -> Spoil:
    """Set keys of a file of the folder; None takes one out."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return spoil


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Spoil:
    """`change` is given the tensors by name."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / name)
        change(weights)
        save_file(weights, folder / name, metadata={"format": "pt"})

    return spoil


def llama_logits(path: Path, tokens: list[int], adapter: Path | None = None) -> np.ndarray:
    model = LlamaModel(path)
    context = LlamaContext(model, n_ctx=1024, n_seq_max=1, n_threads=1)
    if adapter:
        handle = llama_cpp.llama_adapter_lora_init(model.handle, str(adapter).encode())
        assert handle, "llama.cpp cannot put it over this base"
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle)
        assert llama_cpp.llama_set_adapters_lora(context.handle, adapters, 1, (ctypes.c_float * 1)(1.0)) == 0
    batch = [BatchToken(token, place, (0,), True) for place, token in enumerate(tokens)]
    return np.stack([logits.copy() for _, logits in context.decode(batch)])


def assert_same_ids(tokenizer: Any, model: LlamaModel) -> None:
    """Equal ids for every hostile message in every place, and no control token but the prompt's own five."""
    control = set(tokenizer.convert_tokens_to_ids([IM_START, IM_END, "<|endoftext|>"]))
    for text in hostile_texts():
        for exchange in (render_exchange(text, ""), render_exchange("hi", text), render_exchange(text, text)):
            for task in Task:
                prompt = render_prompt(task, exchange)
                ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                assert model.tokenize(prompt) == ids, text
                assert sum(number in control for number in ids) == 5, text
