"""Unsloth's code for CUDA, run on a CPU: a whole small training through it, in a process of its own.

    python -m tests.support.unsloth_on_cpu BASE FOLDER

Triton's interpreter runs its kernels, a program at a time, some hundreds a second: so a model of two layers with three
heads, rows of a few tokens, and what they share is a forest from four tokens on. What asks for a GPU itself is stubbed
here: its name, memory and capability, and the tables of the rotary embedding, which Unsloth keeps on GPUs. In float16:
bfloat16 gives NaN in the interpreter. The last line of stdout says as JSON what was seen.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel

    from observer.training.batching.forest import Batch

ON_CPU = {"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "UNSLOTH_RMSNORM_MULTIROW": "0"}
"""Unsloth imports its CUDA branch, and a check of kernels is left out that would take ten seconds."""
SEEN: dict[str, Any] = {"blocks_compiled": 0}


def start() -> None:
    """Import Unsloth as on a GPU of 80 GiB."""
    os.environ |= ON_CPU
    _patch_triton_once()
    import unsloth  # noqa: F401
    from unsloth.models import llama, rl
    from unsloth.trainer import _patch_trl_trainer

    gib = 2**30
    gpu = SimpleNamespace(name="none", major=9, minor=0, total_memory=80 * gib, multi_processor_count=132)
    for name, answer in {
        "get_device_capability": (9, 0), "get_device_properties": gpu, "mem_get_info": (80 * gib, 80 * gib),
        "empty_cache": None, "current_device": 0,
    }.items():  # fmt: skip
        setattr(torch.cuda, name, functools.partial(_answer, answer))
    for name, answer in {
        "get_device_stats": ("none", "", 80.0), "is_bfloat16_supported": True, "get_current_device": "cpu",
    }.items():  # fmt: skip
        setattr(llama, name, functools.partial(_answer, answer))
    setattr(llama.LlamaRotaryEmbedding, "extend_rope_embedding", lambda *_, **__: None)  # noqa: B010
    setattr(llama.LlamaRotaryEmbedding, "get_cached", _rotary_tables)  # noqa: B010
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # else TRL's trainer is left as it is
    setattr(rl, "patch_trl_rl_trainers", functools.partial(rl._patch_trl_rl_trainers, "sft_trainer"))  # noqa: B010
    rl.PatchFastRL(FastLanguageModel=llama.FastLlamaModel)
    _patch_trl_trainer()
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"


def _patch_triton_once() -> None:
    """The interpreter patches Triton's language for every call of a kernel, also for one in another: half its time."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang

    @functools.cache
    def patch_once(kernel: Any) -> Any:
        patch(kernel)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once


def _answer(answer: Any, *_: Any, **__: Any) -> Any:
    return answer


def _rotary_tables(self: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(256).float(), self._unsloth_recompute_inv_freq()).repeat(1, 2)
    return angles.cos().to(self.cos_cached.dtype), angles.sin().to(self.cos_cached.dtype)


def load(folder: Path, base: Path) -> tuple[PeftModel, Any, Any]:
    """The model with its adapter, its config and its runtime."""
    from unsloth import FastLanguageModel

    from observer.training.batching import forest, unsloth_forward, varlen
    from observer.training.device import Runtime
    from observer.training.model import attach_lora, load_base
    from tests.support import varlen_on_cpu  # noqa: F401
    from tests.support.tiny_runs import tiny_config

    varlen.KERNELS_ON = "cpu"
    forest.SHORTEST_SHARED_PREFIX = unsloth_forward.SHORTEST_SHARED_PREFIX = 4
    load_unsloth = FastLanguageModel.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        SEEN["offload_embedding"] = kwargs["offload_embedding"]
        return load_unsloth(*args, **kwargs, device_map={"": "cpu"})

    setattr(FastLanguageModel, "from_pretrained", staticmethod(from_pretrained))  # noqa: B010
    config = tiny_config(folder, base, "model.backend=unsloth", "training.max_steps=1", "training.eval_steps=1",
                         "training.warmup_steps=0")  # fmt: skip
    runtime = Runtime("cpu", "unsloth", "float16", ())
    return attach_lora(load_base(config, runtime, base), config, runtime), config, runtime


def count_compiled_blocks(model: PeftModel) -> None:
    """Have Unsloth wrap the blocks as on CUDA, and count the calls of what it compiles instead of compiling it."""
    from unsloth.models import _block_compile

    def compile_nothing(forward: Any, **_: Any) -> Any:
        @functools.wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            SEEN["blocks_compiled"] += 1
            return forward(*args, **kwargs)

        return counted

    plain, torch.compile = torch.compile, compile_nothing
    base: Any = model.get_base_model()
    _block_compile._wrap(type(base.model.layers[0]), {})
    torch.compile = plain


def compare(model: PeftModel, batch: Batch) -> None:
    """Loss and gradients of a forest and, where attention in one call has no backward, of padded rows.

    With an adapter that does something.
    """
    from observer.training.batching import varlen
    from observer.training.batching.loss import layout_line
    from tests.support import varlen_on_cpu

    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    found, own = _loss_and_gradients(model, batch)
    SEEN["blocks_compiled_over_a_forest"] = SEEN["blocks_compiled"]
    setattr(varlen_on_cpu, "_gradients", _fail)  # noqa: B010
    varlen.obstacle.cache_clear()
    SEEN["layout_without_backward"] = layout_line(model)
    expected, theirs = _loss_and_gradients(model, batch)
    SEEN["nll"] = (found - expected).abs().max().item()
    SEEN["gradients"] = max(((own[name] - known).norm() / known.norm()).item() for name, known in theirs.items())
    SEEN["n_gradients"] = len(own)


def _loss_and_gradients(model: PeftModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    from observer.training.batching.loss import completion_nll

    model.zero_grad()
    nll = completion_nll(model.train(), batch)
    nll.mean().backward()
    return nll.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _fail(*_: Any) -> None:
    raise RuntimeError("no kernel image is available")


def main(base: Path, folder: Path) -> None:
    start()
    from observer.training.batching.forest import collate
    from observer.training.batching.loss import layout_line
    from observer.training.rows import Splits, TokenRow
    from observer.training.sft import train
    from observer.training.trainer import training_arguments
    from observer.weights.base import load_tokenizer
    from observer.weights.merge import merge_adapter

    model, config, runtime = load(folder, base)
    SEEN["layout"] = layout_line(model)
    shared = list(range(20, 26))
    rows = [TokenRow([*shared, 7, 60, 61], 7, "grade"), TokenRow([*shared, 8, 62, 63, 64], 7, "extract")]
    report = train(model, load_tokenizer(base), Splits(rows, rows[:1]), config, runtime, inputs="made up")
    SEEN["steps"], SEEN["losses"] = report["steps"], report["final"]
    merged = merge_adapter(config.paths.adapter, base, config.paths.merged)
    SEEN["n_merged"] = merged.n_changed
    count_compiled_blocks(model)
    # Unsloth cuts what is longer than its longest row, which a batch is.
    model.get_base_model().model.max_seq_length = 10  # type: ignore[union-attr, assignment]
    compare(model, collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]))
    training = config.training.model_copy(update={"gradient_checkpointing": True})
    args = training_arguments(config.model_copy(update={"training": training}), runtime)
    SEEN["checkpointing"] = args.gradient_checkpointing_kwargs


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(SEEN))
