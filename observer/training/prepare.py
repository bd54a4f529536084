"""Everything a run needs before training: base folder, tokenizer, checked rows, plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.config import Config
from observer.errors import ObserverError
from observer.export.checkpoint import Qwen3Shape, read_shape
from observer.export.quantize import check_quantizations
from observer.training.base import base_folder, load_tokenizer, looks_local
from observer.training.device import Runtime
from observer.training.plan import QWEN3_0_6B, Plan, make_plan
from observer.training.rows import Splits, encode_by_length, encode_with, encode_with_gguf, load_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WITHOUT_EFFECT = {"per_device_eval_batch_size", "logging_steps", "save_total_limit"}
"""Training settings that leave the adapter as it is."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found; `base` and `tokenizer` are those of the run."""

    base: Path
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    plan: Plan

    def training_inputs(self, config: Config, runtime: Runtime, base_hash: str) -> dict[str, Any]:
        """All that the adapter depends on, for the manifest."""
        return {
            "base": base_hash,
            "train": config.data.train,
            "val": config.data.val,
            "seed": config.run.seed,
            "max_length": config.data.max_length,
            "load_in_4bit": config.model.load_in_4bit,
            "lora": config.lora.model_dump(),
            "training": config.training.model_dump(exclude=WITHOUT_EFFECT),
            "runtime": [runtime.device, runtime.backend, runtime.dtype],
        }


@dataclass(frozen=True)
class Planned:
    """What a dry run finds."""

    splits: Splits
    plan: Plan


def prepare(config: Config, runtime: Runtime) -> Prepared:
    """Find the base, check every row, plan. Raises ObserverError; loads no weights and writes nothing."""
    check_settings(config, runtime)
    folder = base_folder(config)
    tokenizer = load_tokenizer(folder)
    splits = load_splits(config, encode_with(tokenizer))
    plan = make_plan(config, runtime, splits, read_shape(folder), counted_with="the base's tokenizer")
    return Prepared(folder, tokenizer, splits, plan)


def prepare_dry(config: Config, runtime: Runtime, vocabulary: Path | None = None) -> Planned:
    """The same without network: where the base is not at hand, Qwen3-0.6B's shape and an estimate of tokens."""
    check_settings(config, runtime)
    folder = cached_base(config)
    shape = read_shape(folder) if folder else known_shape(config)
    if vocabulary is not None:
        splits, counted_with = load_splits(config, encode_with_gguf(vocabulary)), f"the vocabulary of {vocabulary}"
    elif folder is not None:
        splits, counted_with = load_splits(config, encode_with(load_tokenizer(folder))), "the base's tokenizer"
    else:
        splits = load_splits(config, encode_by_length, check_lengths=False)
        counted_with = "an estimate from characters: the base is not here (see --vocab)"
    return Planned(splits, make_plan(config, runtime, splits, shape, counted_with=counted_with))


def cached_base(config: Config) -> Path | None:
    """The base if it is on this machine. Raises ObserverError when a path is meant and is not there."""
    try:
        return base_folder(config, download=False)
    except ObserverError:
        if looks_local(config.model.base):
            raise
        return None


def known_shape(config: Config) -> Qwen3Shape:
    if config.model.base.rpartition("/")[2].casefold() in ("qwen3-0.6b", "qwen3-0.6b-base"):
        return QWEN3_0_6B
    raise ObserverError(f"model.base: {config.model.base}: not here, so its size is unknown; download it first")


def check_settings(config: Config, runtime: Runtime) -> None:
    """Names the config cannot check by itself: quantizations and optimizer."""
    from transformers.training_args import OptimizerNames

    check_quantizations(config.export.quantizations)
    if not config.export.quantizations:
        raise ObserverError("export.quantizations: empty; name at least one, such as q4_k_m")
    optimizer = config.training.optim
    if optimizer not in list(OptimizerNames):
        raise ObserverError(f"training.optim: unknown optimizer {optimizer!r}; take adamw_torch, or adamw_8bit on CUDA")
    if runtime.device == "cpu" and ("8bit" in optimizer or "paged" in optimizer):
        raise ObserverError(f"training.optim: {optimizer} needs CUDA; take adamw_torch on CPU")
