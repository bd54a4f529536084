"""Loading a base model for either backend, and attaching LoRA to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from observer.config import Config
from observer.errors import ObserverError
from observer.training.device import Runtime
from observer.weights.merge import read_lora_header

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_base(config: Config, runtime: Runtime, folder: Path) -> PreTrainedModel:
    """The base model on its device, in the runtime's precision or in NF4."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a line of our own is enough
    load = _load_with_unsloth if runtime.backend == "unsloth" else _load_with_transformers
    model = load(config, runtime, folder)
    model.config.use_cache = False
    if runtime.device == "cpu":
        _keep_4bit_weights_trainable(model)
    return model


def attach_lora(model: PreTrainedModel, config: Config, runtime: Runtime) -> PeftModel:
    """Freeze the base and add the adapter, kept in float32: that of `model.adapter`, or one made of the run's seed.

    The adapter names its base as the config does, so that another machine finds it too.
    """
    import torch

    torch.manual_seed(config.run.seed)
    attach = _attach_with_unsloth if runtime.backend == "unsloth" else _attach_with_peft
    adapted = attach(model, config)
    if config.model.adapter is not None:
        _load_weights(adapted, config.model.adapter)
    for lora in adapted.peft_config.values():
        lora.base_model_name_or_path, lora.revision = config.model.base, config.model.revision
    # PEFT would ask the hub at every checkpoint whether the base's vocabulary had another size.
    cast(Any, adapted).save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def trainable_line(model: PeftModel) -> str:
    """`trainable: 4,587,520 of 600,637,440 parameters (0.76 %)`."""
    trainable, total = model.get_nb_trainable_parameters()
    return f"trainable: {trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)"


def compile_blocks(model: PeftModel, backend: str = "inductor") -> None:
    """Compile each block for any number of tokens; one compilation serves them all, at its first batch.

    Attention is compiled with it where it is one call, and stays as it is where its calls differ with every batch.
    """
    for block in cast(Any, model.get_base_model()).model.layers:
        block.compile(dynamic=True, backend=backend)


def adapter_faults(config: Config) -> list[str]:
    """Why `model.adapter` is not plain LoRA of the run's own rank, scale and modules; empty where it is, or is none."""
    folder = config.model.adapter
    if folder is None:
        return []
    try:
        saved, modules = read_lora_header(folder)
    except ObserverError as error:
        return [str(error)]
    found = {
        "r": saved["r"],
        "lora_alpha": saved["lora_alpha"],
        "use_rslora": bool(saved.get("use_rslora")),
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
    }
    wanted = {**lora_settings(config), "target_modules": sorted(config.lora.target_modules)}
    return [f"lora.{name}: {wanted[name]}, but the adapter {folder} has {value}; set it to that, or train a new one"
            for name, value in found.items() if wanted[name] != value]  # fmt: skip


def lora_settings(config: Config) -> dict[str, Any]:
    """The settings both backends take."""
    return {
        "r": config.lora.r,
        "lora_alpha": config.lora.lora_alpha,
        "lora_dropout": config.lora.lora_dropout,
        "target_modules": list(config.lora.target_modules),
        "use_rslora": config.lora.use_rslora,
        "bias": "none",
    }


def _load_with_transformers(config: Config, runtime: Runtime, folder: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    is_whole_on_gpu = runtime.device == "cuda" and not runtime.launch.shards_weights  # FSDP takes it there in parts
    return AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=runtime.dtype,
        quantization_config=_nf4(runtime) if config.model.load_in_4bit else None,
        device_map={"": runtime.launch.local_rank} if is_whole_on_gpu else None,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )


def _load_with_unsloth(config: Config, runtime: Runtime, folder: Path) -> PreTrainedModel:
    import torch
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=config.data.max_length,
        dtype=getattr(torch, runtime.dtype),
        load_in_4bit=config.model.load_in_4bit,
        use_gradient_checkpointing="unsloth" if config.training.gradient_checkpointing is True else False,
        use_exact_model_name=True,
        offload_embedding=False,  # our head reads its weight where the hidden states are
        local_files_only=True,
        trust_remote_code=False,
    )
    return model


def _nf4(runtime: Runtime) -> Any:
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ObserverError("model.load_in_4bit: bitsandbytes is not installed; install it, or load in 16-bit")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, runtime.dtype),
    )


def _attach_with_peft(model: PreTrainedModel, config: Config) -> PeftModel:
    """PEFT's `prepare_model_for_kbit_training` is left out over 4-bit weights too: it casts embedding, head and norms
    to float32, and with them what flows between the blocks; our 16-bit runs do without."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora_settings(config)))  # type: ignore[return-value]


def _attach_with_unsloth(model: PreTrainedModel, config: Config) -> PeftModel:
    from unsloth import FastLanguageModel

    return FastLanguageModel.get_peft_model(
        model,
        random_state=config.run.seed,
        use_gradient_checkpointing="unsloth" if config.training.gradient_checkpointing is True else False,
        **lora_settings(config),
    )


def _load_weights(model: PeftModel, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    weights = load_peft_weights(str(folder), device="cpu")
    names = {name.replace(".default.", ".") for name, value in model.named_parameters() if value.requires_grad}
    if weights.keys() != names:
        raise ObserverError(f"model.adapter: {folder} was trained on another model than {model.name_or_path}")
    set_peft_model_state_dict(model, weights)


def _keep_4bit_weights_trainable(model: PreTrainedModel) -> None:
    """bitsandbytes 0.50 repacks 4-bit weights at the first inference on CPU; gradients are wrong afterwards."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
