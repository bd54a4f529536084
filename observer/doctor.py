"""What this machine has and lacks, each lack with the command that mends it. Imports none of what it looks for."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from observer.export.ollama import ollama_url

REQUIRED = "transformers trl peft accelerate datasets gguf llama-cpp-python scikit-learn pydantic".split()
OPTIONAL = {
    "unsloth": "pip install -c constraints.txt --no-deps unsloth unsloth_zoo",
    "unsloth_zoo": "pip install -c constraints.txt --no-deps unsloth unsloth_zoo",
    "bitsandbytes": "pip install -c constraints.txt bitsandbytes",
}
NEEDED_MEMORY_BYTES = 3e9
NEEDED_DISK_BYTES = 2e9
"""For the nano run; qwen3-0.6b asks for about 8 GB of disk, which its --dry-run checks."""


@dataclass(frozen=True)
class Finding:
    """One thing looked for; `mend` is empty when all is well."""

    name: str
    found: str
    mend: str = ""
    is_required: bool = True

    @property
    def is_fatal(self) -> bool:
        return bool(self.mend) and self.is_required


def examine() -> list[Finding]:
    packages = [find_package(name) for name in REQUIRED]
    packages += [find_package(name, mend) for name, mend in OPTIONAL.items()]
    return [find_python(), find_cores(), find_memory(), find_disk(), *find_torch(), *packages, find_ollama()]


def render(findings: list[Finding]) -> str:
    """A line each: `ok`, `missing` or `note`, what was found, and how to mend it."""
    lines = []
    for finding in findings:
        state = "ok" if not finding.mend else "missing" if finding.is_required else "note"
        lines.append(f"{state:<8}{finding.name:<18}{finding.found}" + (f"; {finding.mend}" if finding.mend else ""))
    return "\n".join(lines)


def find_python() -> Finding:
    old = sys.version_info < (3, 11)
    mend = "install Python 3.11 or later and name it: make setup PYTHON=python3.12" if old else ""
    return Finding("python", sys.version.split()[0], mend)


def find_cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", str(usable))


def find_memory() -> Finding:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    mend = "the nano run may not fit; close other programs" if total_bytes < NEEDED_MEMORY_BYTES else ""
    return Finding("memory", f"{total_bytes / 1e9:.1f} GB", mend, is_required=False)


def find_disk() -> Finding:
    free_bytes = shutil.disk_usage(Path()).free
    mend = "free some space, or train with --set run.output_dir=DIR" if free_bytes < NEEDED_DISK_BYTES else ""
    return Finding("disk", f"{free_bytes / 1e9:.1f} GB free here", mend, is_required=False)


def find_torch() -> list[Finding]:
    """torch, and whether it can use the GPU that the driver shows."""
    torch = find_package("torch")
    gpus = list_gpus()
    if not gpus:
        return [torch, Finding("gpu", "none with an NVIDIA driver: runs on the CPU, with configs/nano.yaml")]
    mend = ""
    if not torch.mend and torch_cuda() is None:
        mend = "torch was built without CUDA; pip install --force-reinstall -c constraints.txt torch from a CUDA index"
    return [torch, Finding("gpu", ", ".join(gpus), mend)]


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, read from its version.py; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return match.group(1) if match else None


def list_gpus() -> list[str]:
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def find_package(name: str, optional_mend: str = "") -> Finding:
    """Look for an installed package; one with `optional_mend` is not required."""
    try:
        return Finding(name, importlib.metadata.version(name), is_required=not optional_mend)
    except importlib.metadata.PackageNotFoundError:
        mend = optional_mend or "make setup, or: pip install -c constraints.txt -e ."
        return Finding(name, "not installed", mend, is_required=not optional_mend)


def find_ollama() -> Finding:
    """Ask the server at OLLAMA_HOST, or on this machine, for its version."""
    url = ollama_url(os.environ.get("OLLAMA_HOST", ""))
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=2) as answer:
            found = answer.read(200).decode("utf-8", "replace").strip()
            return Finding("ollama", f"{found} at {url}", is_required=False)
    except (OSError, ValueError, http.client.HTTPException):
        has_program = shutil.which("ollama") is not None
        mend = "start it: ollama serve" if has_program else "install Ollama, then: ollama serve"
        return Finding("ollama", f"no server answers at {url}", mend, is_required=False)
