"""What the config leaves to the machine: rows a batch, and whether activations are kept or computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from observer.config import Config, load_config
from observer.errors import ObserverError
from observer.training.device import Runtime
from observer.training.planning.cost import Work, estimate_memory, training_work
from observer.training.planning.memory import USABLE
from observer.training.rows import Splits
from observer.weights.checkpoint import ModelShape

LARGEST_BATCH = 64
"""Rows; beyond it a batch saves nothing more of the instruction's tokens."""
RECOMPUTING = 1.5
"""What recomputing multiplies a batch's work by: the forward pass again, beside one forward and, the base being
frozen, a backward pass of about the same work."""
TOKENS_A_BATCH = 256
"""What any batch costs, in tokens. A guess; it decides between batches only where their tokens hardly differ."""


@dataclass(frozen=True)
class Choice:
    """A way to train: `need_bytes` at the peak, and `cost` in tokens computed an epoch."""

    config: Config
    need_bytes: float
    cost: float

    @property
    def batch_size(self) -> int:
        return self.config.training.batch_size

    @property
    def is_recomputed(self) -> bool:
        return self.config.training.gradient_checkpointing is True


def settle_memory(
    config: Config, runtime: Runtime, splits: Splits, shape: ModelShape, free_bytes: int | None
) -> tuple[Config, list[str]]:
    """The config with its `auto` settings decided, and the plan's lines about them.

    Of the ways that fit into the free memory, the one that computes fewest tokens; the smallest where none fits, and
    the fastest where nobody knows what is free. Raises ObserverError where `train_batch_size` cannot be shared out.
    """

    def fits(choice: Choice) -> bool:
        return free_bytes is None or choice.need_bytes <= USABLE * free_bytes

    kept = recorded_batch_size(config, runtime.launch.n_processes)
    wanted = config.training.gradient_checkpointing
    choices: list[Choice] = []
    for rows in [kept] if kept else batch_sizes_of(config, runtime.launch.n_processes):
        ways = [with_choice(config, runtime, rows, way) for way in ((False, True) if wanted == "auto" else (wanted,))]
        work = training_work(ways[0], splits.train, runtime.launch.n_processes)  # recomputing leaves it as it is
        choices += [weigh(way, runtime, work, shape) for way in ways]
        if fits(choices[-len(ways)]):
            break  # smaller batches have more tokens to compute
    smallest = min(choices, key=lambda choice: choice.need_bytes)
    chosen = min(filter(fits, choices), key=lambda choice: choice.cost, default=smallest)
    lines = [] if config.training.per_device_train_batch_size != "auto" else [
        batch_line(choices, chosen, free_bytes, is_kept=kept is not None)]  # fmt: skip
    return chosen.config, [*lines, recompute_line(config, runtime, choices, chosen, free_bytes)]


def batch_sizes_of(config: Config, n_processes: int) -> list[int]:
    """Rows a batch to choose from, the largest first; they share out a step's rows evenly."""
    training = config.training
    if training.per_device_train_batch_size != "auto":
        return [training.per_device_train_batch_size]
    faults = []
    if training.gradient_accumulation_steps != 1:
        faults.append("training.gradient_accumulation_steps: given beside per_device_train_batch_size: auto, which "
                      "settles it; leave it out and set training.train_batch_size")  # fmt: skip
    if training.train_batch_size % n_processes:
        faults.append(f"training.train_batch_size: {training.train_batch_size} rows cannot be shared out evenly to "
                      f"{n_processes} processes; take a multiple of {n_processes}")  # fmt: skip
    if faults:
        raise ObserverError("\n".join(faults))
    share = training.train_batch_size // n_processes
    return [rows for rows in range(min(share, LARGEST_BATCH), 0, -1) if share % rows == 0]


def recorded_batch_size(config: Config, n_processes: int) -> int | None:
    """Rows a batch that this very run began with: it goes on with them whatever is free by now."""
    if config.training.per_device_train_batch_size != "auto" or not config.paths.config.is_file():
        return None
    try:
        began = load_config(config.paths.config).training
    except ObserverError:
        return None
    if began.per_device_train_batch_size == "auto":
        return None
    rows = n_processes * began.batch_size * began.gradient_accumulation_steps
    return began.batch_size if rows == config.training.train_batch_size else None


def with_choice(config: Config, runtime: Runtime, batch_size: int, recompute: bool) -> Config:
    """The config with both decided; what a batch lacks of a step's rows comes from accumulation."""
    changes: dict[str, Any] = {"per_device_train_batch_size": batch_size, "gradient_checkpointing": recompute}
    if config.training.per_device_train_batch_size == "auto":
        n_rows = config.training.train_batch_size // runtime.launch.n_processes
        changes["gradient_accumulation_steps"] = n_rows // batch_size
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def weigh(config: Config, runtime: Runtime, work: Sequence[Work], shape: ModelShape) -> Choice:
    factor = RECOMPUTING if config.training.gradient_checkpointing is True else 1.0
    n_tokens = sum(batch.n_tokens + TOKENS_A_BATCH for batch in work)
    return Choice(config, estimate_memory(config, runtime, work, shape), factor * n_tokens)


def batch_line(choices: list[Choice], chosen: Choice, free_bytes: int | None, *, is_kept: bool) -> str:
    accumulation = chosen.config.training.gradient_accumulation_steps
    line = f"batch {chosen.batch_size} rows" + (f" x {accumulation} to a step" if accumulation > 1 else "")
    if is_kept:
        return f"{line}: as this run began"
    largest = max(choice.batch_size for choice in choices)
    if chosen.batch_size == largest:
        return f"{line}: training.train_batch_size" + (
            f", or as much of it as a batch should have ({LARGEST_BATCH})" if accumulation > 1 else "")  # fmt: skip
    needs = [choice.need_bytes for choice in choices if choice.batch_size == largest]
    return f"{line}: {largest} at once take {min(needs) / 1e9:.1f} GB or {RECOMPUTING:g} times the work, " + (
        f"{(free_bytes or 0) / 1e9:.1f} GB free")  # fmt: skip


def recompute_line(
    config: Config, runtime: Runtime, choices: list[Choice], chosen: Choice, free_bytes: int | None
) -> str:
    state = "on" if chosen.is_recomputed else "off"
    same_rows = [choice for choice in choices if choice.batch_size == chosen.batch_size]
    fits = free_bytes is None or chosen.need_bytes <= USABLE * free_bytes
    if config.training.gradient_checkpointing != "auto":
        return f"recompute {state}: gradient_checkpointing says so" + ("" if fits else f"; {_TOO_MUCH}")
    if free_bytes is None:
        return f"recompute {state}: how much of the {runtime.device} memory is free is not known here"
    room = f"{free_bytes / 1e9:.1f} GB free"
    if not chosen.is_recomputed:
        return f"recompute off: activations fit, {chosen.need_bytes / 1e9:.1f} GB of {room}"
    without = max(choice.need_bytes for choice in same_rows)
    line = f"recompute on: {without / 1e9:.1f} GB without, {chosen.need_bytes / 1e9:.1f} GB with it, {room}"
    return line if fits else f"{line}; {_TOO_MUCH}"


_TOO_MUCH = "even so it may not fit: lower training.per_device_train_batch_size"
