"""Memory: what is free, what a run has taken, and what to lower when it ends."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from observer.config import Config
from observer.errors import ObserverError

if TYPE_CHECKING:  # torch would count in the peak of a process that has no other use for it
    from observer.training.device import Device, Runtime

USABLE = 0.9
"""Share of the free memory that a plan may fill; its estimate is one."""

_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory|ALLOC_FAILED", re.IGNORECASE)
_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


def free_memory(device: Device, n_processes: int = 1) -> int | None:
    """Bytes that a run may still take on its device; None where they cannot be known.

    `n_processes` of it are on this machine, and share its memory where they train on the CPU.
    """
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    import psutil

    return min([psutil.virtual_memory().available, *_left_to_container()]) // n_processes


def memory_in_use(device: Device) -> int:
    """Bytes now: tensors on the GPU, or the process's resident memory."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss


def peak_memory(device: Device) -> int:
    """The most bytes so far: tensors on the GPU, or the process's resident memory, never that of its parent."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():  # not getrusage's, which survives exec: a child would report its parent's
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def memory_errors_explained(config: Config, runtime: Runtime, planned_bytes: float) -> Iterator[None]:
    """Turn what torch and Python raise when memory ends into one line with this run's numbers and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.cuda.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        raise ObserverError(_explain(config, runtime, planned_bytes)) from error


def _explain(config: Config, runtime: Runtime, planned_bytes: float) -> str:
    t = config.training
    batch, accumulation = t.batch_size, t.gradient_accumulation_steps
    free_bytes = free_memory(runtime.device)
    room = "" if free_bytes is None else f", {free_bytes / 1e9:.1f} GB are free"
    fixes = []
    if batch > 1:
        half = batch // 2
        fixes.append(f"training.per_device_train_batch_size={half} (now {batch}) with "
                     f"training.gradient_accumulation_steps={accumulation * -(-batch // half)}")  # fmt: skip
    if t.gradient_checkpointing is not True:
        fixes.append("training.gradient_checkpointing=true")
    if not config.model.load_in_4bit:
        fixes.append("model.load_in_4bit=true")
    return (
        f"{runtime.device}: out of memory; at most {peak_memory(runtime.device) / 1e9:.1f} GB were taken, "
        f"about {planned_bytes / 1e9:.1f} GB planned{room}; "
        + (f"--set {', or '.join(fixes)}" if fixes else "take a smaller model.base, or a larger machine")
    )


def _left_to_container() -> list[int]:
    """What the container's limit leaves, when there is one: psutil sees the machine alone."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(0, int(limit) - used)]
