"""Everything a run needs before training: base folder, tokenizer, checked rows, plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.config import Config
from observer.errors import ObserverError
from observer.export.checkpoint import Qwen3Shape, read_shape
from observer.export.quantize import check_quantizations
from observer.own_data import OwnData, own_data_of
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
    """What `prepare` found; `base` and `tokenizer` are those of the run, `own_data` is still to be written."""

    base: Path
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    plan: Plan
    own_data: OwnData | None

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
    own_data = own_data_of(config)
    splits = load_splits(config, encode_with(tokenizer), own_data=own_data)
    plan = plan_run(config, runtime, splits, read_shape(folder), "the base's tokenizer", own_data)
    return Prepared(folder, tokenizer, splits, plan, own_data)


def prepare_dry(config: Config, runtime: Runtime, vocabulary: Path | None = None) -> Planned:
    """The same without network: where the base is not at hand, Qwen3-0.6B's shape and an estimate of tokens."""
    check_settings(config, runtime)
    folder = cached_base(config)
    shape = read_shape(folder) if folder else known_shape(config)
    own_data = own_data_of(config)
    if vocabulary is not None:
        encode, counted_with = encode_with_gguf(vocabulary), f"the vocabulary of {vocabulary}"
    elif folder is not None:
        encode, counted_with = encode_with(load_tokenizer(folder)), "the base's tokenizer"
    else:
        encode = encode_by_length
        counted_with = "an estimate from characters: the base is not here (see --vocab)"
    splits = load_splits(config, encode, check_lengths=encode is not encode_by_length, own_data=own_data)
    return Planned(splits, plan_run(config, runtime, splits, shape, counted_with, own_data))


def plan_run(
    config: Config, runtime: Runtime, splits: Splits, shape: Qwen3Shape, counted_with: str, own_data: OwnData | None
) -> Plan:
    """The plan; for rows of one's own it names the files they will be in, after what was read and how it is split."""
    if own_data is None:
        return make_plan(config, runtime, splits, shape, counted_with=counted_with)
    config = config.with_split_files(config.paths.data.train, config.paths.data.val)
    plan = make_plan(config, runtime, splits, shape, counted_with=counted_with)
    return replace(plan, text=f"{own_data.summary}\n{plan.text}")


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
