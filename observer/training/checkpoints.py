"""Where a cut training goes on: the last whole checkpoint, and what inputs it belongs to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from observer.console.stopping import Stopped
from observer.errors import ObserverError
from observer.files import read_text, write_json
from observer.paths import RunPaths
from observer.training.multiprocess.processes import Launch, add_up

CHECKPOINT_FILES = ("adapter_model.safetensors", "scheduler.pt", "trainer_state.json")
CHECKPOINT_STATES = ("optimizer.*", "rng_state*.pth")
"""The optimizer's is .pt, or .bin where weights are split; the other is one file, or one for each process."""
ECHO_S = 2.0
"""Seconds in which a second signal is the first one again: torchrun passes on what the terminal told every process."""

_RECORD = "inputs.json"


def find_checkpoint(paths: RunPaths, inputs: str, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None to start anew.

    An unfinished training with the same inputs goes on by itself; `resume` goes on although they changed.
    Raises ObserverError when they changed and `resume` was not asked, or when it was and there is nothing.
    """
    checkpoint = last_whole_checkpoint(paths.checkpoints)
    if checkpoint is None:
        if resume:
            raise ObserverError(f"{paths.checkpoints}: no checkpoint to resume from; run without --resume")
        return None
    record = _read_record(paths.checkpoints)
    if not resume and record.get("inputs") != inputs:
        if record.get("is_finished"):
            return None
        raise ObserverError(
            f"{paths.checkpoints}: an unfinished training with another config or other data is here; "
            f"give this one its own --run-name, go on with the old weights by --resume, or delete {paths.checkpoints}"
        )
    return checkpoint


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that a kill did not cut: trainer_state.json is written last."""
    return max(filter(_is_whole, _checkpoints_in(folder)), key=checkpoint_step, default=None)


def remove_cut_checkpoints(folder: Path) -> None:
    """Remove those that a kill or a full disk cut: nothing can go on from them."""
    for checkpoint in _checkpoints_in(folder):
        if not _is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)


def _checkpoints_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def start_checkpoints(paths: RunPaths, inputs: str, checkpoint: Path | None) -> None:
    """Record what the checkpoints belong to; what was cut goes, and without one to go on from, the whole folder."""
    remove_cut_checkpoints(paths.checkpoints)
    if checkpoint is None:
        shutil.rmtree(paths.checkpoints, ignore_errors=True)
    write_json(paths.checkpoints / _RECORD, {"inputs": inputs, "is_finished": False})


def finish_checkpoints(paths: RunPaths, inputs: str) -> None:
    """Record that nothing is left to go on with, so that the next training may take the folder."""
    write_json(paths.checkpoints / _RECORD, {"inputs": inputs, "is_finished": True})


def checkpoint_step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


class StopCallback(TrainerCallback):
    """Ends a training after the current step, with a checkpoint, when a signal asked any of its processes for it."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.asked_at: float | None = None
        self.asked_by: int = signal.SIGINT
        self.has_stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if add_up(self.launch, [self.asked_at is not None], args.device)[0]:
            control.should_save = control.should_training_stop = True
            self.has_stopped = True

    def settle(self, args: TrainingArguments) -> None:
        """After the last step: a signal that came during what follows it stops the run just as well."""
        self.has_stopped = self.has_stopped or bool(add_up(self.launch, [self.asked_at is not None], args.device)[0])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as the wish to stop; a second one stops at once."""
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self._take) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at, self.asked_by = now, number
            if self.launch.is_first:  # os.write: the signal may have come in the middle of another write
                os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")
        elif not self.launch.is_shared or now - self.asked_at > ECHO_S:
            raise Stopped(number)


class PatienceCallback(TrainerCallback):
    """Ends a training after so many evaluations in turn without a lower loss, those before a checkpoint among them.

    transformers' own counts anew from a checkpoint, and fails at one of a training begun without it.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        losses = [record["eval_loss"] for record in state.log_history if "eval_loss" in record]
        if losses and len(losses) > losses.index(min(losses)) + self.patience:
            control.should_training_stop = True

    on_train_begin = on_evaluate


class RotationCallback(TrainerCallback):
    """Removes all checkpoints but the last ones and the best, by their steps.

    The trainer itself would go by the time of the folders: after the clock is set back, the newest is taken.
    """

    def __init__(self, save_total_limit: int) -> None:
        self.save_total_limit = save_total_limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and args.output_dir:
            rotate_checkpoints(args.output_dir, self.save_total_limit, state.best_model_checkpoint, use_mtime=False)


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in CHECKPOINT_FILES):
        return False
    if not all(any(checkpoint.glob(name)) for name in CHECKPOINT_STATES):
        return False
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD
    try:
        record = json.loads(read_text(path)) if path.exists() else {}
    except json.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
