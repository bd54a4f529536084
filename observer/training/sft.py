"""The LoRA training itself: TRL's SFTTrainer with our loss, our row order, and files a person can read.

Import only after `prepare_backend`: unsloth replaces `trl.SFTTrainer` when it is imported first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from observer.config import Config
from observer.files import atomic_path
from observer.paths import RunPaths
from observer.training.checkpoints import (
    StopCallback,
    checkpoint_step,
    disk_errors_explained,
    find_checkpoint,
    finish_checkpoints,
    start_checkpoints,
)
from observer.training.device import Runtime
from observer.training.loss import Batch, collate, completion_nll, mean_nll_by_task
from observer.training.order import LengthGroupedSampler
from observer.training.progress import ProgressCallback, RunLog, plot_losses
from observer.training.rows import Splits

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


class CompletionTrainer(SFTTrainer):
    """SFTTrainer whose training and eval loss is the token-mean NLL of the completions.

    TRL's own loss needs Triton, and its eval loss depends on the batch layout; this one does neither.
    """

    def __init__(self, *, model: PeftModel, splits: Splits, pad_token_id: int, **kwargs: Any) -> None:
        super().__init__(model=model, data_collator=lambda rows: collate(rows, pad_token_id), **kwargs)
        self.peft_model, self.splits, self.pad_token_id = model, splits, pad_token_id
        self.model_accepts_loss_kwargs = True  # num_items_in_batch makes gradient accumulation exact
        for parameter in model.parameters():
            if parameter.requires_grad:  # TRL casts a QLoRA adapter to bfloat16, which loses small updates
                parameter.data = parameter.data.float()

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        with self.accelerator.autocast():
            nll = completion_nll(self.peft_model, inputs)
        return nll.sum() / (len(nll) if num_items_in_batch is None else num_items_in_batch)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        self.peft_model.eval()
        batch_size = self.args.per_device_eval_batch_size
        with self.accelerator.autocast():
            losses = mean_nll_by_task(self.peft_model, self.splits.val, batch_size, self.pad_token_id)
        metrics = {"eval_loss": losses.pop("all")} | {f"eval_{task}_loss": loss for task, loss in losses.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        return LengthGroupedSampler(self.splits.train, self.args.per_device_train_batch_size, self.args.seed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A model card in every checkpoint would tell nobody anything."""


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    config: Config,
    runtime: Runtime,
    *,
    inputs: str,
    resume: bool = False,
) -> dict[str, Any]:
    """Train and save the adapter to `paths.adapter`; return what the manifest keeps.

    `inputs` is the fingerprint of all the training depends on; checkpoints carry it. Raises
    KeyboardInterrupt, after a checkpoint, when a signal asked to stop.
    """
    paths = config.paths
    checkpoint = find_checkpoint(paths, inputs, resume=resume)
    start_checkpoints(paths, inputs, checkpoint)
    log = RunLog(paths.log, append=checkpoint is not None)
    log.write(f"resuming from {checkpoint}" if checkpoint else describe(config, runtime, splits))
    step = checkpoint_step(checkpoint)
    progress = ProgressCallback(log, paths.metrics, config.training.logging_steps, resumed_step=step)
    stop = StopCallback()
    trainer = make_trainer(model, tokenizer, splits, config, runtime)
    trainer.remove_callback(PrinterCallback)
    for callback in (progress, stop):
        trainer.add_callback(callback)
    with stop.listening(), disk_errors_explained(paths.checkpoints):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    plot_losses(paths.metrics, paths.loss_curve)
    if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
        log.write(f"stopped by a signal; checkpoint {trainer.state.global_step} saved")
        raise KeyboardInterrupt
    with disk_errors_explained(paths.adapter):
        save_adapter(model, tokenizer, paths)
    finish_checkpoints(paths, inputs)
    return {"steps": trainer.state.global_step, "final": last_losses(trainer.state.log_history)}


def make_trainer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: Config, runtime: Runtime
) -> CompletionTrainer:
    """The trainer, with every setting that a backend would otherwise change given explicitly."""
    dataset = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in splits.train])
    return CompletionTrainer(
        model=model,
        args=training_arguments(config, runtime),
        train_dataset=dataset,
        eval_dataset=dataset.select([0]),  # the trainer wants one; `evaluate` reads splits.val
        processing_class=tokenizer,
        splits=splits,
        pad_token_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]
    )


def training_arguments(config: Config, runtime: Runtime) -> SFTConfig:
    """Our config in TRL's names."""
    t = config.training
    return SFTConfig(
        output_dir=str(config.paths.checkpoints),
        num_train_epochs=t.num_train_epochs,
        max_steps=t.max_steps,
        per_device_train_batch_size=t.per_device_train_batch_size,
        per_device_eval_batch_size=t.per_device_eval_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.lr_scheduler_type,
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optim=t.optim,
        gradient_checkpointing=t.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if t.gradient_checkpointing else None,
        bf16=runtime.dtype == "bfloat16",
        fp16=runtime.dtype == "float16",
        use_cpu=runtime.device == "cpu",
        seed=config.run.seed,
        data_seed=config.run.seed,
        max_length=config.data.max_length,
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="steps",
        eval_steps=t.eval_steps,
        save_strategy="steps",
        save_steps=t.eval_steps,
        save_total_limit=t.save_total_limit,
        logging_strategy="steps",
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=runtime.device == "cuda",
        disable_tqdm=True,
        report_to=[],
    )


def save_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, paths: RunPaths) -> None:
    """Save the adapter with its tokenizer, whole or not at all."""
    with atomic_path(paths.adapter) as temporary:
        model.save_pretrained(str(temporary), safe_serialization=True, save_embedding_layers=False)
        tokenizer.save_pretrained(str(temporary))


def describe(config: Config, runtime: Runtime, splits: Splits) -> str:
    """The head of training.log."""
    lora, t = config.lora, config.training
    return (
        f"run {config.run.name}: {config.model.base}, {runtime.backend} on {runtime.device}, {runtime.dtype}"
        f"{', base in NF4' if config.model.load_in_4bit else ''}\n"
        f"LoRA r {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout} on {', '.join(lora.target_modules)}\n"
        f"{len(splits.train):,} train rows, {len(splits.val):,} val rows, batch {t.per_device_train_batch_size} x "
        f"{t.gradient_accumulation_steps}, learning rate {t.learning_rate:g} ({t.lr_scheduler_type}), "
        f"seed {config.run.seed}"
    )


def last_losses(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last train loss and the last eval losses of a trainer's history."""
    found: dict[str, float] = {}
    for record in history:
        found |= {name: value for name, value in record.items() if name.endswith("loss") and name != "train_loss"}
    return found
