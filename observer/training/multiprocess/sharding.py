"""Fully sharded data parallel (FSDP2): each process holds a part of the weights and borrows the rest layer by layer.

accelerate splits the model where its launch file asks for it (configs/accelerate/fsdp.yaml); here is what our trainer
needs besides: weights that are whole when they are read or saved, and losses that stay in float32.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from observer.config import Config
from observer.training.multiprocess.processes import Launch

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from peft import PeftModel

LAUNCH_FILE = "configs/accelerate/fsdp.yaml"


def sharding_faults(config: Config, launch: Launch, backend: str) -> list[str]:
    """Why this run's weights cannot be split as its launch asks; empty where they can, or need not be."""
    found = os.environ
    if found.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return []
    faults = []
    if not launch.is_shared:
        faults.append("num_processes: 1, and weights are split over several; take 2 or more, or launch without FSDP")
    if (version := found.get("FSDP_VERSION", "1")) != "2":
        faults.append(f"fsdp_version: {version}; take 2")
    if (kind := found.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")) != "FULL_STATE_DICT":
        faults.append(f"fsdp_state_dict_type: {kind}; take FULL_STATE_DICT, the adapter is saved whole")
    if found.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "").lower() == "true":
        faults.append("fsdp_cpu_ram_efficient_loading: true; take false, every process loads the base")
    if config.model.load_in_4bit:
        faults.append("model.load_in_4bit: 4-bit weights are not split; load in 16 bits, or launch without FSDP")
    if backend == "unsloth":
        faults.append("model.backend: unsloth trains in one process; take transformers, or launch without FSDP")
    return [f"{fault} ({LAUNCH_FILE} is a launch file that works)" for fault in faults]


def let_cpus_shard() -> None:
    """Have accelerate split weights between CPUs too; call before a trainer makes its accelerator.

    accelerate 1.15 reads its FSDP plugin for launches on GPUs alone (AcceleratorState.__init__ lists their kinds, and
    MULTI_CPU is none of them), though torch's fully_shard runs on gloo. So the launch passes for one on GPUs.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def keep_precision(accelerator: Accelerator) -> None:
    """Leave precision to autocast, as in one process.

    accelerate would have FSDP cast adapters, their gradients and the loss itself to bfloat16.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None, "the launch asked for it"
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)


def gather_weights(module: torch.nn.Module) -> None:
    """Make a module's own weights whole, where they are split and are going to be read without calling it."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.unshard()


def whole_adapter(model: PeftModel) -> dict[str, Any]:
    """The adapter's weights put together on the CPU of the first process, empty in the others; all must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)
