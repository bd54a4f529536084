"""What a person and a program see of a training: training.log, metrics.jsonl, a bar or a line now and then."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from observer.console.durations import format_duration
from observer.files import scan_jsonl, write_jsonl, write_text
from observer.training.device import Device
from observer.training.planning.memory import memory_in_use

LINE_EVERY_S = 10.0
"""Seconds between two progress lines where no terminal shows the bar."""
BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps, {elapsed} gone, {remaining} left{postfix}"


class RunLog:
    """training.log: a time and a sentence a line; shown on stderr as well. Without a path it says nothing."""

    def __init__(self, path: Path | None, *, append: bool) -> None:
        self.path = path
        if path is not None and not append:
            write_text(path, "")

    def write(self, text: str, *, show: bool = True) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n" for line in text.splitlines())
        if show:
            tqdm.write(text, file=sys.stderr)


class ProgressCallback(TrainerCallback):
    """Writes a metrics record whenever the trainer has a loss and a log line every `logging_steps` steps; draws the bar
    on a terminal.

    The time of training runs from record to record, without evaluations and checkpoints. A record holds the mean loss
    of the steps since the one before, so the GPU has done them by then; at a step's end it may only have been given its
    work.
    """

    def __init__(
        self, log: RunLog, metrics: Path, logging_steps: int, *, device: Device, resumed_step: int = 0
    ) -> None:
        self.log, self.metrics, self.logging_steps, self.resumed_step = log, metrics, logging_steps, resumed_step
        self.device: Device = device
        kept = [record for record in read_metrics(metrics) if record["step"] <= resumed_step] if resumed_step else []
        write_jsonl(metrics, kept)
        self.losses: list[float] = []  # of each step since the last line
        self.recorded_step = resumed_step
        self.n_tokens, self.training_s = 0, 0.0
        self.started = self.shown = self.began = time.monotonic()
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = self.shown = self.began = time.monotonic()
        self.bar = tqdm(
            total=state.max_steps, initial=self.resumed_step, file=sys.stderr, bar_format=BAR, dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.training_s += time.monotonic() - self.began
            self._step(state, logs)
        elif "eval_loss" in logs:
            self._evaluation(state, logs)
        self.began = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.log.write(f"step {state.global_step:>5}  checkpoint saved", show=False)
        self.began = time.monotonic()

    def close(self) -> None:
        """Let go of the terminal's line, however the training ended."""
        if self.bar is not None:
            self.bar.close()

    def _step(self, state: TrainerState, logs: dict[str, Any]) -> None:
        elapsed_s = time.monotonic() - self.started
        names = ("loss", "learning_rate", "grad_norm", "epoch", "num_tokens")
        self._record({"step": state.global_step} | {n: logs[n] for n in names if n in logs} | {"elapsed_s": elapsed_s})
        n_steps = state.global_step - self.recorded_step
        self.recorded_step = state.global_step
        self.losses += [logs["loss"]] * n_steps
        self.n_tokens += logs["num_tokens"]
        speed = f"{self.n_tokens / max(self.training_s, 1e-9):,.0f} tokens/s"
        memory = f"{memory_in_use(self.device) / 1e9:.1f} GB"
        if self.bar is not None:
            now = f"loss {logs['loss']:.3f}, rate {logs['learning_rate']:.1e}, {speed}, {memory}"
            self.bar.set_postfix_str(now, refresh=False)
            self.bar.update(n_steps)
        if state.global_step % self.logging_steps and state.global_step != state.max_steps:
            return
        left_s = elapsed_s / (state.global_step - self.resumed_step) * (state.max_steps - state.global_step)
        line = (
            f"step {state.global_step:>5}/{state.max_steps}  epoch {logs['epoch']:.2f}  "
            f"loss {sum(self.losses) / len(self.losses):.4f}  learning rate {logs['learning_rate']:.1e}  "
            f"{speed}  {memory}  {format_duration(left_s)} left"
        )
        self.losses.clear()
        show = not sys.stderr.isatty() and time.monotonic() - self.shown > LINE_EVERY_S
        self.log.write(line, show=show)
        self.shown = time.monotonic() if show else self.shown

    def _evaluation(self, state: TrainerState, logs: dict[str, Any]) -> None:
        losses = {name: value for name, value in logs.items() if name.startswith("eval_") and name.endswith("loss")}
        self._record({"step": state.global_step} | losses)
        by_task = {name.split("_")[1]: value for name, value in losses.items() if name != "eval_loss"}
        parts = ", ".join(f"{task} {value:.4f}" for task, value in by_task.items())
        self.log.write(f"step {state.global_step:>5}/{state.max_steps}  eval loss {logs['eval_loss']:.4f}  ({parts})")

    def _record(self, values: dict[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    return [record for _, record in scan_jsonl(path)[0]]


def plot_losses(metrics: Path, picture: Path, *, kept_step: int | None = None) -> None:
    """Draw loss and eval loss over steps; `kept_step` is the one whose adapter was saved."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from observer.files import atomic_path

    records = read_metrics(metrics)
    train = [(record["step"], record["loss"]) for record in records if "loss" in record]
    if not train:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes.plot(*zip(*train, strict=True), color="#b9c4d0", linewidth=0.8, label="train")
    axes.plot(*zip(*_smoothed(train), strict=True), color="#1f4e79", linewidth=1.6, label="train, mean of 20 records")
    highest = max(loss for _, loss in train)
    for name, label, color, style in (
        ("eval_grade_loss", "validation, grading", "#d68910", "o-"),
        ("eval_extract_loss", "validation, extraction", "#117a65", "o-"),
        ("eval_loss", "validation, all", "#c0392b", "x--"),  # on top: it lies on its larger part
    ):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=color, markersize=4.5, linewidth=1.3, label=label)
            highest = max(highest, *(loss for _, loss in points))
    if kept_step is not None:
        axes.axvline(kept_step, color="#7f8c8d", linestyle=":", linewidth=1.2, label=f"adapter saved: step {kept_step}")
    axes.set(xlabel="optimizer step", ylabel="nats a completion token", xlim=(0, None), ylim=(0, 1.05 * highest))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)


def _smoothed(points: list[tuple[int, float]], width: int = 20) -> list[tuple[int, float]]:
    windows = [points[max(0, end - width) : end] for end in range(1, len(points) + 1)]
    return [(window[-1][0], sum(loss for _, loss in window) / len(window)) for window in windows]
