"""What an NVIDIA GPU needs beside itself: a torch and a driver of one CUDA, and what kernels are compiled with.

Asks nvidia-smi and the file system, and imports no torch, so that `observer doctor` can use it on any machine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The branch of the driver from which all versions of a CUDA generation run: "CUDA Toolkit and Minimum Required Driver
Version for CUDA Minor Version Compatibility" in NVIDIA's release notes."""
GET_COMPILER = "apt-get install gcc python3-dev"


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver shows it: name and memory in one text, and the driver's version."""

    name: str
    driver: str


def list_gpus() -> list[Gpu]:
    """None where no NVIDIA driver answers."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    fields = [line.rpartition(",") for line in done.stdout.splitlines() if line.strip()]
    return [Gpu(name.strip(), driver.strip()) for name, _, driver in fields]


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, read from its version.py; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return match.group(1) if match else None


def cuda_obstacle(gpus: list[Gpu], cuda: str | None) -> str | None:
    """Why a torch built for `cuda` cannot use the GPUs, and what to do; None where it can, or where there are none."""
    if not gpus:
        return None
    if cuda is None:
        return "torch was built without CUDA; pip install --force-reinstall -c constraints.txt torch from a CUDA index"
    oldest = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]), 0)
    driver = gpus[0].driver
    if not driver[:1].isdigit() or int(driver.partition(".")[0]) >= oldest:
        return None
    return (
        f"the NVIDIA driver {driver} is too old for this torch's CUDA {cuda}; "
        f"install driver {oldest} or later, or a torch of an older CUDA"
    )


def compiler_lacks() -> list[str]:
    """What Triton misses to compile a kernel's launcher: a C compiler, Python's headers."""
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    lacks = [] if any(map(shutil.which, compilers)) else [" or ".join(compilers)]
    has_headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return lacks if has_headers else [*lacks, "Python.h"]
