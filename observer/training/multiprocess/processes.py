"""More than one process: who is who in a launch by torchrun or `accelerate launch`, and what they tell one another.

The first process reads, writes and decides; the others train along and leave. All calls here do nothing in a run of
one process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """This process among those of the run; `shards_weights`: each holds a part of the model, see `sharding`."""

    rank: int = 0
    n_processes: int = 1
    local_rank: int = 0
    shards_weights: bool = False
    n_on_machine: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        return self.n_processes > 1


def find_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """What torchrun or accelerate set; one process when neither started this one."""
    found = os.environ if environment is None else environment
    rank, n_processes, local_rank = (
        int(found.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    shards_weights = n_processes > 1 and found.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return Launch(rank, n_processes, local_rank, shards_weights, int(found.get("LOCAL_WORLD_SIZE", "1")))


def join_processes(launch: Launch, device: str) -> None:
    """Meet the other processes: gloo between CPUs, NCCL between GPUs."""
    if launch.is_shared:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")


def leave_processes(launch: Launch) -> None:
    """Part from the other processes; none of the calls here may follow."""
    import torch

    if launch.is_shared and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def meet(launch: Launch) -> None:
    """Go on when every process is here."""
    if launch.is_shared:
        import torch

        torch.distributed.barrier()


def tell(launch: Launch, value: Any = None) -> Any:
    """What the first process gives as `value`, in every process."""
    if not launch.is_shared:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def add_up(launch: Launch, values: Sequence[float], device: Any) -> list[float]:
    """The sums over all processes, in every process."""
    if not launch.is_shared:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def least(launch: Launch, value: int | None, device: Any) -> int | None:
    """The least of what the processes give, in every process; before they have joined, what this one gives."""
    import torch

    if value is None or not launch.is_shared or not torch.distributed.is_initialized():
        return value
    found = torch.tensor(value, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return int(found)
