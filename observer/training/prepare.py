"""Everything a run needs before training: base folder, tokenizer, checked rows, plan."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.config import Config
from observer.data.own_data import OwnData, own_data_of
from observer.errors import ObserverError, raise_all
from observer.paths import cache_folder
from observer.training.cuda import GET_COMPILER, compiler_lacks
from observer.training.device import Runtime
from observer.training.model import adapter_faults
from observer.training.multiprocess.processes import least
from observer.training.multiprocess.sharding import sharding_faults
from observer.training.planning.batch_size import settle_memory
from observer.training.planning.memory import free_memory
from observer.training.planning.plan import Plan, make_plan
from observer.training.rows import Encode, Splits, encode_by_length, encode_with, encode_with_gguf, load_splits
from observer.weights.base import base_folder, load_tokenizer, looks_local, with_commit
from observer.weights.checkpoint import ModelShape, read_shape
from observer.weights.gguf_types import quantization_faults, tensor_type_faults
from observer.weights.size import known_shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WITHOUT_EFFECT = {
    "per_device_eval_batch_size", "logging_steps", "save_total_limit", "gradient_checkpointing", "report_to",
    "train_batch_size", "torch_compile",
}  # fmt: skip
"""Training settings that leave the adapter as it is, or whose effect is in the settled others."""
_WITH_TOKENIZER = "the base's tokenizer"
REPORTER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found; `base` and `tokenizer` are those of the run, `own_data` is still to be written.

    `config` is the given one with its open choices settled.
    """

    base: Path
    tokenizer: PreTrainedTokenizerBase
    config: Config
    splits: Splits
    plan: Plan
    own_data: OwnData | None

    def training_inputs(self, config: Config, runtime: Runtime, base_hash: str) -> dict[str, Any]:
        """All that the adapter depends on, for the manifest."""
        return {
            "base": base_hash,
            "train": config.data.train,
            "val": config.data.val,
            **{f"more {path}": path for path in config.data.more},
            "seed": config.run.seed,
            "max_length": config.data.max_length,
            "load_in_4bit": config.model.load_in_4bit,
            "lora": config.lora.model_dump(),
            **({"adapter": config.model.adapter} if config.model.adapter else {}),
            "training": config.training.model_dump(exclude=WITHOUT_EFFECT),
            "runtime": [runtime.device, runtime.backend, runtime.dtype, runtime.launch.n_processes]
            + ["fsdp"] * runtime.launch.shards_weights
            + ["compiled"] * config.training.torch_compile,
        }


def prepare(config: Config, runtime: Runtime) -> Prepared:
    """Find the base, check every row, plan. Raises ObserverError; loads no weights and writes nothing."""
    check_settings(config, runtime)
    if config.training.torch_compile and runtime.device == "cuda" and (lacks := compiler_lacks()):
        raise ObserverError(f"training.torch_compile: {' and '.join(lacks)} not found; {GET_COMPILER}, or leave it out")
    folder = base_folder(config)
    config, tokenizer = with_commit(config, folder), load_tokenizer(folder)
    encode = encode_with(tokenizer, cache_folder() / "tokens")
    return Prepared(folder, tokenizer, *read_and_plan(config, runtime, read_shape(folder), encode, _WITH_TOKENIZER))


def plan_dry(config: Config, runtime: Runtime, vocabulary: Path | None = None) -> Plan:
    """The plan without network: where the base is not at hand, of a known shape and an estimate of tokens."""
    check_settings(config, runtime)
    folder = cached_base(config)
    shape = read_shape(folder) if folder else known_shape(config.model.base)
    if vocabulary is not None:
        encode, counted_with = encode_with_gguf(vocabulary), f"the vocabulary of {vocabulary}"
    elif folder is not None:
        encode, counted_with = encode_with(load_tokenizer(folder), cache_folder() / "tokens"), _WITH_TOKENIZER
    else:
        encode = encode_by_length
        counted_with = "an estimate from characters: the base is not here (see --vocab)"
    _, _, plan, _ = read_and_plan(config, runtime, shape, encode, counted_with)
    return plan


def read_and_plan(
    config: Config, runtime: Runtime, shape: ModelShape, encode: Encode, counted_with: str
) -> tuple[Config, Splits, Plan, OwnData | None]:
    """Check the rows, decide what the config leaves to the machine, plan.

    The plan of rows of one's own names the files they will be in, after what was read and how it is split.
    """
    launch, own_data = runtime.launch, own_data_of(config)
    splits = load_splits(config, encode, check_lengths=encode is not encode_by_length, own_data=own_data)
    free_bytes = least(launch, free_memory(runtime.device, launch.n_on_machine), runtime.device)
    config, lines = settle_memory(config, runtime, splits, shape, free_bytes)
    runtime = replace(runtime, reasons=(*runtime.reasons, *lines))
    files = config.paths.data
    shown = config.with_split_files(files.train, files.val) if own_data else config
    plan = make_plan(shown, runtime, splits, shape, counted_with=counted_with)
    if own_data:
        plan = replace(plan, text=f"{own_data.summary}\n{plan.text}")
    return config, splits, plan, own_data


def cached_base(config: Config) -> Path | None:
    """The base if it is on this machine. Raises ObserverError when a path is meant and is not there."""
    try:
        return base_folder(config, download=False)
    except ObserverError:
        if looks_local(config.model.base):
            raise
        return None


def check_settings(config: Config, runtime: Runtime) -> None:
    """Names the config cannot check by itself: quantizations, optimizer and the packages of reporters."""
    from transformers.training_args import OptimizerNames

    has_imatrix = config.export.imatrix_rows > 0
    faults = quantization_faults(config.export.quantizations, has_imatrix=has_imatrix)
    faults += tensor_type_faults(config.export.tensor_types, has_imatrix=has_imatrix)
    if not config.export.quantizations:
        faults.append("export.quantizations: empty; name at least one, such as q4_k_m")
    optimizer = config.training.optim
    if optimizer not in list(OptimizerNames):
        faults.append(f"training.optim: unknown optimizer {optimizer!r}; take adamw_torch, or adamw_torch_fused or "
                      "adamw_8bit on CUDA")  # fmt: skip
    elif runtime.device == "cpu" and ("8bit" in optimizer or "paged" in optimizer):
        faults.append(f"training.optim: {optimizer} needs CUDA; take adamw_torch on CPU")
    if config.training.torch_compile and runtime.backend == "unsloth":
        faults.append("training.torch_compile: unsloth's forward would be compiled anew for every length of a batch; "
                      "leave it out, or set model.backend=transformers")  # fmt: skip
    faults += adapter_faults(config)
    faults += sharding_faults(config, runtime.launch, runtime.backend)
    for reporter in config.training.report_to:
        packages = REPORTER_PACKAGES[reporter]
        if not any(importlib.util.find_spec(package) for package in packages):
            faults.append(
                f"training.report_to: {reporter} is not installed; `pip install {packages[0]}`, or leave it out"
            )
    raise_all(faults)
