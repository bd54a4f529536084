"""The ways to train that the benchmark compares, each as its own documentation would have it written.

The rows arrive tokenized, the adapter has one shape and one start, optimizer and rates are shared: what differs is the
loop. Nothing here is imported before `build` runs, since unsloth has to come before trl, transformers and peft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from observer.config import Config
from observer.errors import ObserverError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from observer.training.device import Runtime
    from observer.training.prepare import Prepared


@dataclass(frozen=True)
class Contestant:
    """`backend` is what model.backend is set to; `scored` the tokens its loss counts; `batch` scales --batch-size."""

    title: str
    backend: Literal["auto", "transformers", "unsloth"]
    build: Callable[[Entry], Trainer]
    note: str
    scored: Literal["completion", "all"] = "completion"
    batch: Callable[[int], int] = lambda rows: rows


@dataclass(frozen=True)
class Entry:
    """What a contestant trains: the run's settings, rows and base."""

    config: Config
    runtime: Runtime
    prepared: Prepared

    @property
    def dataset(self) -> Dataset:
        from datasets import Dataset

        return Dataset.from_list(
            [{"input_ids": row.input_ids, "labels": row.labels} for row in self.prepared.splits.train]
        )


def plain_trl(entry: Entry) -> Trainer:
    """SFTTrainer and LoraConfig with their defaults: checkpointing on, rows padded to the longest."""
    from peft import LoraConfig
    from transformers import Trainer
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    from observer.training.model import load_base, lora_settings

    class FullLogitsTrainer(SFTTrainer):
        """TRL 1.15's fused head is Triton-only; on the CPU its loss is the model's own, over all logits."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return Trainer.compute_loss(self, *args, **kwargs)

    kind = SFTTrainer if entry.runtime.device == "cuda" else FullLogitsTrainer
    return kind(
        model=load_base(entry.config, entry.runtime, entry.prepared.base),
        args=SFTConfig(**shared_arguments(entry), **tokenized(entry)),
        train_dataset=entry.dataset,
        processing_class=entry.prepared.tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora_settings(entry.config)),
    )


def first_version(entry: Entry) -> Trainer:
    """Hugging Face's Trainer, rows padded to the longest, the loss over prompt and completion alike."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    from observer.training.model import load_base, lora_settings

    model = load_base(entry.config, entry.runtime, entry.prepared.base)
    if entry.config.model.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return Trainer(
        model=get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora_settings(entry.config))),  # type: ignore[arg-type]
        args=TrainingArguments(**shared_arguments(entry)),
        train_dataset=entry.dataset.remove_columns("labels"),
        data_collator=DataCollatorForLanguageModeling(entry.prepared.tokenizer, mlm=False),
    )


def unsloth_defaults(entry: Entry) -> Trainer:
    """FastLanguageModel and SFTTrainer as in its notebooks: its checkpointing, padding-free where it chooses so."""
    return _unsloth(entry, checkpointing="unsloth")


def unsloth_tuned(entry: Entry) -> Trainer:
    """Unsloth without checkpointing, with rows of like length together, and padded for its compiled blocks."""
    import os

    os.environ.setdefault("UNSLOTH_PADDING_CHOICE", "padded")
    return _unsloth(entry, checkpointing=False, train_sampling_strategy="group_by_length")


def ours(entry: Entry) -> Trainer:
    """What `train_sft.py` trains with."""
    from observer.training.model import attach_lora, load_base
    from observer.training.sft import make_trainer

    config, runtime, prepared = entry.config, entry.runtime, entry.prepared
    model = attach_lora(load_base(config, runtime, prepared.base), config, runtime)
    return make_trainer(model, prepared.tokenizer, prepared.splits, config, runtime)


def ours_compiled(entry: Entry) -> Trainer:
    """The same with `training.torch_compile`."""
    training = entry.config.training.model_copy(update={"torch_compile": True})
    return ours(replace(entry, config=entry.config.model_copy(update={"training": training})))


CONTESTANTS = {
    "trl": Contestant(
        "plain TRL + PEFT",
        "transformers",
        plain_trl,
        "SFTTrainer and LoraConfig defaults, gradient checkpointing on; on CPU with full logits, because TRL's fused "
        "loss needs Triton",
    ),
    "first-version": Contestant(
        "first version's loop",
        "transformers",
        first_version,
        "Hugging Face Trainer, padded to the longest, loss on all tokens: its loss and gradient are not comparable",
        scored="all",
        batch=lambda rows: 4,
    ),
    "unsloth": Contestant(
        "Unsloth defaults",
        "unsloth",
        unsloth_defaults,
        "gradient checkpointing `unsloth`; its CPU backend without CUDA",
    ),
    "unsloth-tuned": Contestant(
        "Unsloth tuned",
        "unsloth",
        unsloth_tuned,
        "checkpointing off, UNSLOTH_PADDING_CHOICE=padded, grouped by length, twice the rows a step",
        batch=lambda rows: 2 * rows,
    ),
    "ours": Contestant("ours", "auto", ours, "train_sft.py's trainer, backend as it chooses itself"),
    "ours-compiled": Contestant("ours, compiled", "transformers", ours_compiled, "with training.torch_compile"),
    "ours-transformers": Contestant(
        "ours, transformers", "transformers", ours, "train_sft.py's trainer over plain PEFT"
    ),
    "ours-unsloth": Contestant("ours, Unsloth", "unsloth", ours, "train_sft.py's trainer over Unsloth's model"),
}
DEFAULT_CONTESTANTS = ("trl", "first-version", "unsloth", "unsloth-tuned", "ours")


@dataclass(frozen=True)
class Entrant:
    """One of CONTESTANTS with its rows a step; `label` is how it was asked for."""

    label: str
    kind: str
    batch_size: int

    @property
    def contestant(self) -> Contestant:
        return CONTESTANTS[self.kind]


def parse_entrants(labels: list[str], batch_size: int) -> list[Entrant]:
    """`ours` trains with --batch-size rows a step, `ours@32` with 32. Raises ObserverError for an unknown name."""
    entrants, faults = [], []
    for label in dict.fromkeys(labels):
        kind, at, rows = label.partition("@")
        if kind not in CONTESTANTS or (at and not (rows.isdigit() and int(rows))):
            faults.append(
                f"--contestants {label}: known: {', '.join(CONTESTANTS)}, each with @ROWS behind it if wanted"
            )
        else:
            entrants.append(Entrant(label, kind, int(rows) if at else CONTESTANTS[kind].batch(batch_size)))
    if faults:
        raise ObserverError("\n".join(faults))
    return entrants


def entry_config(config: Config, entrant: Entrant, folder: Path) -> Config:
    """The run's config with what this contestant sets itself; what it writes goes below `folder`."""
    run = config.run.model_copy(update={"output_dir": folder, "name": entrant.label.replace("@", "-")})
    training = config.training.model_copy(update={"per_device_train_batch_size": entrant.batch_size})
    model = config.model.model_copy(update={"backend": entrant.contestant.backend})
    return config.model_copy(update={"run": run, "training": training, "model": model})


def shared_arguments(entry: Entry) -> dict[str, Any]:
    """What every contestant is told alike; the rest is its default."""
    t, dtype = entry.config.training, entry.runtime.dtype
    return {
        "output_dir": str(entry.config.paths.checkpoints),
        "num_train_epochs": t.num_train_epochs,
        "per_device_train_batch_size": t.per_device_train_batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.lr_scheduler_type,
        "warmup_steps": t.warmup_steps,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "optim": t.optim,
        "seed": entry.config.run.seed,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": entry.runtime.device == "cpu",
        "dataloader_pin_memory": entry.runtime.device == "cuda",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def tokenized(entry: Entry) -> dict[str, Any]:
    """TRL takes the rows as they are, labels included."""
    return {"max_length": entry.config.data.max_length, "dataset_kwargs": {"skip_prepare_dataset": True}}


def _unsloth(entry: Entry, *, checkpointing: Any, **arguments: Any) -> Trainer:
    import torch
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]
    from unsloth import FastLanguageModel

    from observer.training.model import lora_settings

    config, runtime = entry.config, entry.runtime
    model, _ = FastLanguageModel.from_pretrained(
        str(entry.prepared.base),
        max_seq_length=config.data.max_length,
        dtype=getattr(torch, runtime.dtype),
        load_in_4bit=config.model.load_in_4bit,
        use_exact_model_name=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model = FastLanguageModel.get_peft_model(
        model, random_state=config.run.seed, use_gradient_checkpointing=checkpointing, **lora_settings(config)
    )
    if not checkpointing:
        arguments["gradient_checkpointing"] = False
    return SFTTrainer(
        model=model,
        args=SFTConfig(**shared_arguments(entry), **tokenized(entry), **arguments),
        train_dataset=entry.dataset,
        processing_class=entry.prepared.tokenizer,
    )
