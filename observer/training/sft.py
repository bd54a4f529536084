"""The LoRA training itself: from a checkpoint or anew, watched, to a saved adapter and files a person can read.

Import only after `prepare_backend`: unsloth replaces `trl.SFTTrainer` when it is imported first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from observer.config import Config
from observer.console.stopping import Stopped
from observer.errors import ObserverError
from observer.files import atomic_path, disk_errors_explained
from observer.paths import RunPaths
from observer.training.batching.loss import layout_line
from observer.training.checkpoints import (
    PatienceCallback,
    RotationCallback,
    StopCallback,
    checkpoint_step,
    find_checkpoint,
    finish_checkpoints,
    remove_cut_checkpoints,
    start_checkpoints,
)
from observer.training.device import Runtime
from observer.training.multiprocess.processes import meet
from observer.training.multiprocess.sharding import whole_adapter
from observer.training.planning.memory import peak_memory
from observer.training.progress import ProgressCallback, RunLog, plot_losses
from observer.training.rows import Splits
from observer.training.trainer import CompletionTrainer, make_trainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


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

    `inputs` is the fingerprint of all the training depends on; checkpoints carry it. Every process of a
    launch calls this, the first alone writes. Raises Stopped, after a checkpoint, when a signal asked for it.
    """
    paths, launch = config.paths, runtime.launch
    checkpoint = find_checkpoint(paths, inputs, resume=resume)
    meet(launch)  # all have looked before the first one clears the folder
    if launch.is_first:
        start_checkpoints(paths, inputs, checkpoint)
    log = RunLog(paths.log if launch.is_first else None, append=checkpoint is not None)
    log.write(f"resuming from {checkpoint}" if checkpoint else describe(config, runtime, splits))
    stop = StopCallback(launch)
    trainer = make_trainer(model, tokenizer, splits, config, runtime)
    log.write(layout_line(model))
    started = time.monotonic()
    try:
        with watched(trainer, stop, log, config, runtime, checkpoint_step(checkpoint)), \
             disk_errors_explained(paths.checkpoints):  # fmt: skip
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except ObserverError:
        if launch.is_first:
            remove_cut_checkpoints(paths.checkpoints)  # it takes room on a full disk
        raise
    stop.settle(trainer.args)
    seconds, step = time.monotonic() - started, trainer.state.global_step
    if stop.has_stopped:
        if launch.is_first:
            plot_losses(paths.metrics, paths.loss_curve)
        log.write(f"stopped by a signal; checkpoint {step} saved")
        raise Stopped(stop.asked_by)
    if step < trainer.state.max_steps:
        log.write(
            f"stopped early at step {step}: {config.training.early_stopping_patience} evaluations without a lower loss"
        )
    kept = kept_step(trainer)
    log.write(f"adapter of step {kept} saved: eval loss {trainer.state.best_metric:.4f} is the lowest"
              if kept != step else f"adapter of step {step} saved, the last one")  # fmt: skip
    weights = whole_adapter(model) if launch.shards_weights else None
    if launch.is_first:
        plot_losses(paths.metrics, paths.loss_curve, kept_step=kept)
        with disk_errors_explained(paths.adapter):
            save_adapter(model, tokenizer, paths, weights)
        finish_checkpoints(paths, inputs)
    return {
        "steps": step,
        "rows_a_step": config.training.batch_size * config.training.gradient_accumulation_steps * launch.n_processes,
        "kept_step": kept,
        "final": last_losses(trainer.state.log_history),
        "seconds": seconds,
        "resumed_step": checkpoint_step(checkpoint),
        "peak_bytes": peak_memory(runtime.device),
    }


@contextmanager
def watched(
    trainer: CompletionTrainer, stop: StopCallback, log: RunLog, config: Config, runtime: Runtime, resumed_step: int
) -> Iterator[None]:
    """Progress, signals and early stopping for the training inside."""
    callbacks: list[TrainerCallback] = [stop, RotationCallback(config.training.save_total_limit)]
    patience = config.training.early_stopping_patience
    if patience is not None:
        callbacks.append(PatienceCallback(patience))
    progress = None
    if runtime.launch.is_first:
        progress = ProgressCallback(
            log, config.paths.metrics, config.training.logging_steps, device=runtime.device, resumed_step=resumed_step
        )
        callbacks.append(progress)
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        with stop.listening():
            yield
    finally:
        if progress is not None:
            progress.close()


def kept_step(trainer: CompletionTrainer) -> int:
    """The step whose adapter the model holds after a training: the best one's where it was loaded."""
    state = trainer.state
    is_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    return state.best_global_step or state.global_step if is_best else state.global_step


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, paths: RunPaths, weights: dict[str, Any] | None = None
) -> None:
    """Save the adapter with its tokenizer, whole or not at all; `weights` where the model holds a part of them only."""
    with atomic_path(paths.adapter) as temporary:
        model.save_pretrained(str(temporary), safe_serialization=True, state_dict=weights)
        tokenizer.save_pretrained(str(temporary))
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's card has blanks where the run's own has facts
        _sort_target_modules(temporary / "adapter_config.json")


def _sort_target_modules(path: Path) -> None:
    """PEFT writes a set, in another order in each process: equal trainings would leave unequal folders."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
        path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def describe(config: Config, runtime: Runtime, splits: Splits) -> str:
    """The head of training.log."""
    lora, t = config.lora, config.training
    n_processes = runtime.launch.n_processes
    return (
        f"run {config.run.name}: {config.model.base}, {runtime.backend} on {runtime.device}, {runtime.dtype}"
        f"{', base in NF4' if config.model.load_in_4bit else ''}"
        f"{f', adapter {config.model.adapter} trained further' if config.model.adapter else ''}\n"
        f"LoRA r {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout} on {', '.join(lora.target_modules)}\n"
        f"{len(splits.train):,} train rows, {len(splits.val):,} val rows, batch {t.batch_size} x "
        f"{t.gradient_accumulation_steps}{f' x {n_processes} processes' if n_processes > 1 else ''}, "
        f"learning rate {t.learning_rate:g} ({t.lr_scheduler_type}), "
        f"seed {config.run.seed}" + (f", labels weigh {t.grade_weight:g}" if t.grade_weight != 1 else "")
    )


def last_losses(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last train loss and the last eval losses of a trainer's history."""
    found: dict[str, float] = {}
    for record in history:
        found |= {name: value for name, value in record.items() if name.endswith("loss") and name != "train_loss"}
    return found
