"""Which device, backend and precision a run uses, and why: every choice comes with its reason."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from dataclasses import dataclass, field
from typing import Literal

from observer.config import Config
from observer.console.telemetry import switch_off
from observer.errors import ObserverError
from observer.paths import cache_folder
from observer.training.cuda import GET_COMPILER, compiler_lacks, cuda_obstacle, list_gpus
from observer.training.multiprocess.processes import Launch, find_launch

Device = Literal["cpu", "cuda"]
Backend = Literal["unsloth", "transformers"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Runtime:
    """What a run computes with. `reasons` has one line for each choice."""

    device: Device
    backend: Backend
    dtype: Precision
    reasons: tuple[str, ...]
    launch: Launch = field(default_factory=Launch)


def choose_runtime(config: Config, *, dry_run: bool = False) -> Runtime:
    """Settle device, backend and precision.

    Raises ObserverError for `device: cuda` without CUDA (a dry run plans it all the same) and for a
    backend that is not installed.
    """
    launch = find_launch()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if not launch.is_shared:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.partition(",")[0]  # one GPU: SFTTrainer refuses DataParallel
    device, device_reason = _choose_device(config, dry_run)
    backend, backend_reason = _choose_backend(config, device, launch)
    dtype, dtype_reason = _choose_dtype(config, device)
    reasons = [device_reason, backend_reason, dtype_reason]
    if launch.is_shared:
        share = f"1/{launch.n_processes} of the weights (FSDP)" if launch.shards_weights else "the whole model"
        reasons.append(f"processes {launch.n_processes}, each with its own rows and {share}")
    elif device == "cuda" and "," in visible:
        reasons.append(f"processes 1, on the first GPU of CUDA_VISIBLE_DEVICES={visible}; torchrun takes them all")
    return Runtime(device, backend, dtype, tuple(reasons), launch)


def prepare_backend(runtime: Runtime, *, dry_run: bool = False) -> None:
    """Import what has to come before trl, transformers and peft, with its environment settled first."""
    switch_off()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):  # theirs are in /tmp: gone with the next boot
        os.environ.setdefault(variable, str(cache_folder() / variable.removesuffix("_CACHE_DIR").lower()))
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # an optional kernel is missing, always
    if dry_run or runtime.backend != "unsloth":
        return
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth_compiled"))
    if runtime.device == "cpu":
        os.environ["UNSLOTH_FORCE_CPU"] = "1"
    try:
        importlib.import_module("unsloth")
    except Exception as error:  # its import checks drivers and versions and raises what it likes
        raise ObserverError(
            f"model.backend: unsloth does not start here ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "set model.backend=transformers"
        ) from error


def _choose_device(config: Config, dry_run: bool) -> tuple[Device, str]:
    import torch

    if config.run.device == "cpu":
        return "cpu", "device cpu: run.device says so"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver, which is said below
        if torch.cuda.is_available():
            return "cuda", f"device cuda: {torch.cuda.get_device_name(0)}"
    obstacle = cuda_obstacle(list_gpus(), torch.version.cuda)
    if config.run.device == "auto":
        return "cpu", f"device cpu: {obstacle or 'no CUDA GPU found'}"
    if dry_run:
        return "cuda", "device cuda: run.device asks for it; this machine has none, so a real run stops here"
    raise ObserverError(
        f"run.device: cuda, but {obstacle}"
        if obstacle
        else f"run.device: cuda, but no CUDA GPU is found here; run {config.run.name!r} on a machine with one, "
        "or train on this one with --config configs/nano.yaml"
    )


def _choose_backend(config: Config, device: Device, launch: Launch) -> tuple[Backend, str]:
    wanted = config.model.backend
    installed = importlib.util.find_spec("unsloth") is not None
    if wanted == "transformers":
        return "transformers", "backend transformers: model.backend says so"
    autocasts = device == "cuda" and config.model.dtype == "float32" and _has_bfloat16()
    if wanted == "unsloth":
        if autocasts:
            raise ObserverError("model.dtype: float32, but on a GPU unsloth computes in bfloat16 all the same; "
                                "set model.backend=transformers, or another dtype")  # fmt: skip
        if not installed:
            raise ObserverError("model.backend: unsloth is not installed; install it, or take transformers")
        if device == "cuda" and (lacks := compiler_lacks()):
            raise ObserverError(f"model.backend: unsloth's kernels want {' and '.join(lacks)} to be compiled with; "
                                f"{GET_COMPILER}, or take transformers")  # fmt: skip
        return "unsloth", "backend unsloth: model.backend says so"
    if device == "cpu":
        return "transformers", "backend transformers: plain TRL and PEFT on CPU"
    if launch.is_shared:
        return "transformers", "backend transformers: unsloth is taken for one process only"
    if autocasts:
        return "transformers", "backend transformers: unsloth would compute float32 in bfloat16"
    if installed and (lacks := compiler_lacks()):
        return "transformers", f"backend transformers: unsloth's kernels want {' and '.join(lacks)} ({GET_COMPILER})"
    if installed:
        return "unsloth", "backend unsloth: installed, and its kernels want CUDA"
    return "transformers", "backend transformers: unsloth is not installed"


def _choose_dtype(config: Config, device: Device) -> tuple[Precision, str]:
    wanted = config.model.dtype
    if device == "cpu":
        if wanted == "float16":
            return "float32", "dtype float32: float16 does not train on CPU"
        is_fast = _cpu_computes_bfloat16()
        if wanted == "auto" and is_fast:
            return "bfloat16", "dtype bfloat16: this CPU computes in it"
        if wanted == "auto":
            return "float32", "dtype float32: this CPU does not compute in bfloat16"
        slow = "; this CPU does not compute in it, float32 is many times faster"
        return wanted, f"dtype {wanted}: model.dtype says so{slow if wanted == 'bfloat16' and not is_fast else ''}"
    has_bfloat16 = _has_bfloat16()
    if wanted == "auto" and has_bfloat16:
        return "bfloat16", "dtype bfloat16: the GPU has it"
    if wanted == "auto" or (wanted == "bfloat16" and not has_bfloat16):
        return "float16", "dtype float16: this GPU has no bfloat16"
    return wanted, f"dtype {wanted}: model.dtype says so"


def _cpu_computes_bfloat16() -> bool:
    """Else torch's products of bfloat16 matrices take tens of times as long as those of float32."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_bfloat16() -> bool:
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
