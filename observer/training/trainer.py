"""TRL's SFTTrainer with our loss and our row order, on CPU and GPU, in one process or several.

Import only after `prepare_backend`: unsloth replaces `trl.SFTTrainer` when it is imported first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from observer.config import Config
from observer.prompts import Task
from observer.training.batching.forest import FILLED_UP_TO, Batch, Forest, Row, collate
from observer.training.batching.loss import completion_nll, sharing_obstacle, sum_nll_by_task
from observer.training.batching.order import RowSampler, SharedOrder
from observer.training.device import Runtime
from observer.training.model import compile_blocks
from observer.training.multiprocess.processes import Launch, add_up
from observer.training.multiprocess.sharding import keep_precision, let_cpus_shard, whole_adapter
from observer.training.rows import IGNORED, Splits, TokenRow

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


class CompletionTrainer(SFTTrainer):
    """SFTTrainer whose eval loss is the token-mean NLL of the completions, and its training loss too, but for the rows'
    weights.

    TRL's own loss needs Triton, and its eval loss depends on the batch layout; this one does neither.
    """

    def __init__(self, *, model: PeftModel, splits: Splits, launch: Launch, **kwargs: Any) -> None:
        super().__init__(model=model, data_collator=self.collate_counted, **kwargs)
        self.peft_model, self.splits, self.launch = model, splits, launch
        self.n_tokens = 0  # of this process's rows since the last record
        self.model_accepts_loss_kwargs = True  # num_items_in_batch makes gradient accumulation exact
        if launch.is_shared:
            _score_in_forward(model)
        if launch.shards_weights:
            keep_precision(self.accelerator)
        for parameter in model.parameters():
            if parameter.requires_grad:  # TRL casts a QLoRA adapter to bfloat16, which loses small updates
                parameter.data = parameter.data.float()

    def collate_counted(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The batch with the `weights` of its scored tokens, and its `n_tokens`: prompts and completions, each row's
        own, without padding."""
        real = [row for row in rows if row["labels"][-1] != IGNORED]  # without the filler of `SharedOrder`
        weights = [row["weight"] for row in real for label in row["labels"] if label != IGNORED]
        n_tokens = sum(len(row["input_ids"]) for row in real)
        is_filled_up = self.args.device.type != "cpu" and sharing_obstacle(self.peft_model) is None
        batch = collate(real or rows[:1], FILLED_UP_TO if is_filled_up else None)
        return {**batch, "weights": torch.tensor(weights), "n_tokens": n_tokens}

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        self.n_tokens += inputs.pop("n_tokens", 0)
        weights = inputs.pop("weights")
        batch = cast(Batch, inputs)
        with self.accelerator.autocast():
            # The wrapper adds up the gradients of all processes, if it is what is called.
            nll = model(completion_batch=batch) if self.launch.is_shared else self.score(batch)
        n_items = len(nll) if num_items_in_batch is None else num_items_in_batch
        return (nll * weights).sum() * self.launch.n_processes / n_items  # the wrapper takes their mean

    def _prepare_input(self, data: Any) -> Any:
        """transformers moves tensors and what holds them; a step that is handed its batch moves the forest too."""
        return data.to(self.args.device) if isinstance(data, Forest) else super()._prepare_input(data)

    def score(self, batch: Batch) -> torch.Tensor:
        """`completion_nll` of this process's batch; where weights are split, all processes must call this together."""
        if self.launch.shards_weights:
            return self.peft_model(completion_batch=batch)
        return completion_nll(self.peft_model, batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["num_tokens"] = int(add_up(self.launch, [self.n_tokens], self.args.device)[0])
            self.n_tokens = 0
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What was trained is recorded before it is evaluated or saved, and at the end, also between two records."""
        control = self.control
        control.should_log |= control.should_evaluate or control.should_save or control.should_training_stop
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Not a step where a checkpoint was the last one: transformers looks for the end only after a step."""
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        self.peft_model.eval()
        losses = self.validation_losses()
        metrics = {"eval_loss": losses.pop("all")} | {f"eval_{task}_loss": loss for task, loss in losses.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation_losses(self) -> dict[str, float]:
        """The token-mean loss of all validation rows and of each task's; each process scores its share."""
        rows, batch_size, n_processes = self.splits.val, self.args.per_device_eval_batch_size, self.launch.n_processes
        share = rows[self.launch.rank :: n_processes]
        if self.launch.shards_weights:  # every process runs as many batches, or they would wait for one another
            share = share + [TokenRow([0, 0], 2, rows[0].task)] * (-(-len(rows) // n_processes) - len(share))
        with self.accelerator.autocast():
            sums = sum_nll_by_task(self.score, share, batch_size, self.peft_model.device)
        tasks = ["all", *sorted({row.task for row in rows})]
        totals = add_up(self.launch, [part for task in tasks for part in sums.get(task, (0.0, 0))], self.args.device)
        return {task: totals[2 * n] / totals[2 * n + 1] for n, task in enumerate(tasks)}

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        n_processes, batch_size = self.launch.n_processes, self.args.per_device_train_batch_size
        are_padded = sharing_obstacle(self.peft_model) is not None
        order = RowSampler(self.splits.train, n_processes * batch_size, self.args.seed, are_padded=are_padded)
        if not self.launch.is_shared:
            return order
        shared = SharedOrder(order, n_processes, batch_size, filler=len(self.splits.train))
        self.add_callback(EpochCallback(shared))
        return shared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.launch.shards_weights:
            return super().save_model(output_dir, _internal_call)
        weights = whole_adapter(self.peft_model)  # transformers would put the whole base together
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A model card in every checkpoint would tell nobody anything."""


class EpochCallback(TrainerCallback):
    """Tells the order its epoch: accelerate does not where it skips batches of a run of several processes."""

    def __init__(self, order: SharedOrder) -> None:
        self.order = order

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.order.set_epoch(int(state.epoch or 0))


def _score_in_forward(model: PeftModel) -> None:
    """Let `model(completion_batch=…)` be the loss: wrappers for several processes see what goes through forward."""
    plain = model.forward

    def forward(*args: Any, completion_batch: Batch | None = None, **kwargs: Any) -> Any:
        return plain(*args, **kwargs) if completion_batch is None else completion_nll(model, completion_batch)

    model.forward = forward


def make_trainer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: Config, runtime: Runtime
) -> CompletionTrainer:
    """The trainer, with every setting that a backend would otherwise change given explicitly."""
    weights = task_weights(splits.train, config.training.grade_weight)
    rows = [{"input_ids": row.input_ids, "labels": row.labels, "weight": weights[row.task]} for row in splits.train]
    if runtime.launch.is_shared:  # what a process takes that has no row left in the last step
        rows.append({"input_ids": splits.train[0].input_ids[:2], "labels": [IGNORED] * 2, "weight": 0.0})
    if config.training.torch_compile:
        compile_blocks(model)
    dataset = Dataset.from_list(rows)
    args = training_arguments(config, runtime)
    if runtime.launch.is_shared and runtime.device == "cpu":
        args.__dict__["_setup_devices"] = torch.device("cpu")  # accelerate's is `cpu:0`: torch.load refuses to go there
        if runtime.launch.shards_weights:
            let_cpus_shard()
    return CompletionTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=dataset.select([0]),  # the trainer wants one; `evaluate` reads splits.val
        processing_class=tokenizer,
        splits=splits,
        launch=runtime.launch,
    )


def task_weights(rows: Sequence[TokenRow], grade_weight: float) -> dict[str, float]:
    """What a scored token of each task counts in the training loss: a label's `grade_weight` times as much as an
    extraction's, and 1 in the mean over all scored tokens of the rows.

    That mean makes the sum over a step's tokens by their number a loss of the usual size, and exact when the step's
    rows come in several batches or processes.
    """
    n_scored: dict[str, int] = {}
    for row in rows:
        n_scored[row.task] = n_scored.get(row.task, 0) + len(row) - row.prompt_length
    counts = {task: grade_weight if task == Task.GRADE else 1.0 for task in n_scored}
    mean = sum(counts[task] * n for task, n in n_scored.items()) / sum(n_scored.values())
    return {task: count / mean for task, count in counts.items()}


def training_arguments(config: Config, runtime: Runtime) -> SFTConfig:
    """Our config in TRL's names."""
    t = config.training
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(config.paths.tensorboard))
    os.environ.setdefault("WANDB_DIR", str(config.paths.root))
    return SFTConfig(
        output_dir=str(config.paths.checkpoints),
        num_train_epochs=t.num_train_epochs,
        max_steps=t.max_steps or -1,  # of 0 they make one step
        per_device_train_batch_size=t.batch_size,
        per_device_eval_batch_size=t.per_device_eval_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.lr_scheduler_type,
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optim=t.optim,
        gradient_checkpointing=t.gradient_checkpointing is True,
        # Unsloth's SFTConfig makes it True on CUDA, where its offloading to the host wants that.
        gradient_checkpointing_kwargs={"use_reentrant": False} if t.gradient_checkpointing is True else None,
        ddp_find_unused_parameters=False,
        bf16=runtime.dtype == "bfloat16",
        fp16=runtime.dtype == "float16",
        use_cpu=runtime.device == "cpu",
        seed=config.run.seed,
        data_seed=config.run.seed,
        max_length=config.data.max_length,
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,  # `weight` is ours
        eval_strategy="steps",
        eval_steps=t.eval_steps,
        save_strategy="steps",
        save_steps=t.eval_steps,
        save_total_limit=None,  # RotationCallback sees to it
        load_best_model_at_end=t.load_best,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="steps",
        logging_steps=1 if runtime.device == "cpu" else t.logging_steps,  # a GPU works on until its loss is asked for
        logging_first_step=True,
        logging_nan_inf_filter=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=runtime.device == "cuda",
        accelerator_config={"non_blocking": runtime.device == "cuda"},
        disable_tqdm=True,
        report_to=list(t.report_to),
        run_name=config.run.name,
        project="qwen3-observer",
    )
