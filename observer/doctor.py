"""What this machine has and lacks, each lack with the command that fixes it. Imports none of what it looks for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from observer.errors import ObserverError
from observer.ollama.address import ollama_url
from observer.ollama.client import NoServer, server_version
from observer.training.cuda import GET_COMPILER, compiler_lacks, cuda_obstacle, list_gpus, torch_cuda

REQUIRED = "transformers trl peft accelerate datasets gguf llama-cpp-python scikit-learn pydantic".split()
OPTIONAL = {
    "unsloth": "pip install -c constraints.txt --no-deps unsloth unsloth_zoo",
    "unsloth_zoo": "pip install -c constraints.txt --no-deps unsloth unsloth_zoo",
    "bitsandbytes": "pip install -c constraints.txt bitsandbytes",
}
SHOWN_ALONE = frozenset({"gpu", "dev"})
"""Extras of pyproject.toml that get no line: OPTIONAL names the first one's packages, and dev is for our own tests."""
LLAMA_BACKENDS = ("cuda", "hip", "metal", "vulkan", "sycl", "cpu")
QWEN3_SINCE, PROBABILITIES_SINCE = (0, 6, 6), (0, 12, 11)
"""Versions of Ollama: what runs Qwen3, and what tells log-probabilities."""
NEEDED_MEMORY_BYTES = 3e9
NEEDED_DISK_BYTES = 2e9
"""For the nano run; qwen3-0.6b asks for about 8 GB of disk, which its --dry-run checks."""


@dataclass(frozen=True)
class Finding:
    """One thing looked for; `fix` is empty when all is well."""

    name: str
    found: str
    fix: str = ""
    is_required: bool = True

    @property
    def is_fatal(self) -> bool:
        return bool(self.fix) and self.is_required


def examine() -> list[Finding]:
    machine = [find_python(), find_cores(), find_memory(), find_disk(), *find_torch()]
    packages = [find_package(name) for name in REQUIRED] + find_unfit()
    packages += [find_package(name, fix) for name, fix in OPTIONAL.items()]
    return [*machine, *packages, find_llama_cpp(), *find_extras(), find_ollama()]


def render(findings: list[Finding]) -> str:
    """A line each: `ok`, `missing` or `note`, what was found, and how to fix it."""
    lines = []
    for finding in findings:
        state = "ok" if not finding.fix else "missing" if finding.is_required else "note"
        lines.append(f"{state:<8}{finding.name:<18}{finding.found}" + (f"; {finding.fix}" if finding.fix else ""))
    return "\n".join(lines)


def find_python() -> Finding:
    old = sys.version_info < (3, 11)
    fix = "install Python 3.11 or later and name it: make setup PYTHON=python3.12" if old else ""
    return Finding("python", sys.version.split()[0], fix)


def find_cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", str(usable))


def find_memory() -> Finding:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fix = "the nano run may not fit; close other programs" if total_bytes < NEEDED_MEMORY_BYTES else ""
    return Finding("memory", f"{total_bytes / 1e9:.1f} GB", fix, is_required=False)


def find_disk() -> Finding:
    free_bytes = shutil.disk_usage(Path()).free
    fix = "free some space, or train with --set run.output_dir=DIR" if free_bytes < NEEDED_DISK_BYTES else ""
    return Finding("disk", f"{free_bytes / 1e9:.1f} GB free here", fix, is_required=False)


def find_torch() -> list[Finding]:
    """torch, and whether it can use the GPU that the driver shows and compile kernels for it."""
    torch = find_package("torch")
    gpus = list_gpus()
    if not gpus:
        return [torch, Finding("gpu", "none with an NVIDIA driver: runs on the CPU, with configs/nano.yaml")]
    fix = "" if torch.fix else cuda_obstacle(gpus, torch_cuda()) or ""
    gpu = Finding("gpu", ", ".join(f"{gpu.name}, driver {gpu.driver}" for gpu in gpus), fix)
    lacks = compiler_lacks()
    found = f"without {', '.join(lacks)}" if lacks else "a C compiler and Python.h"
    fix = f"unsloth and torch_compile build kernels with them: {GET_COMPILER}" if lacks else ""
    return [torch, gpu, Finding("compiler", found, fix, is_required=False)]


def find_package(name: str, optional_fix: str = "") -> Finding:
    """Look for an installed package; one with `optional_fix` is not required."""
    try:
        return Finding(name, importlib.metadata.version(name), is_required=not optional_fix)
    except importlib.metadata.PackageNotFoundError:
        fix = optional_fix or "make setup, or: pip install -c constraints.txt -e ."
        return Finding(name, "not installed", fix, is_required=not optional_fix)


def find_unfit() -> list[Finding]:
    """What pyproject.toml asks for and is missing or of another version; nothing for what fits."""
    from packaging.requirements import Requirement

    findings = []
    for text in _requirements():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        finding = find_package(wanted.name)
        if finding.fix:
            findings += [] if wanted.name in REQUIRED else [finding]
        elif not wanted.specifier.contains(finding.found, prereleases=True):
            fix = f"{wanted.specifier} is asked for: make setup, or: pip install -c constraints.txt -e ."
            findings.append(Finding(wanted.name, finding.found, fix))
    return findings


def find_extras() -> list[Finding]:
    """A line for each optional part of pyproject.toml, with what it lacks."""
    from packaging.requirements import Requirement

    parts: dict[str, list[str]] = {}
    for text in _requirements():
        wanted = Requirement(text)
        match = re.search(r"""extra == ["']([\w-]+)["']""", str(wanted.marker or ""))
        if match and match[1] not in SHOWN_ALONE:
            parts.setdefault(match[1], []).append(wanted.name)
    findings = []
    for extra, names in parts.items():
        missing = [name for name in names if find_package(name).fix]
        fix = f"pip install -c constraints.txt -e '.[{extra}]'" if missing else ""
        found = f"without {', '.join(missing)}" if missing else ", ".join(names)
        findings.append(Finding(f"extra {extra}", found, fix, is_required=False))
    return findings


def find_llama_cpp() -> Finding:
    """Which libraries of llama.cpp were built: they tell whether it can use the GPU."""
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    names = {file.name for file in folder.glob("*ggml*")} if spec else set()
    backends = [name for name in LLAMA_BACKENDS if any(f"ggml-{name}." in file for file in names)]
    versions = sorted(match[1] for file in names if (match := re.search(r"libggml\.so\.(\d+\.\d+.*)", file)))
    found = f"ggml {versions[-1] if versions else 'of unknown version'} for {', '.join(backends) or 'nothing'}"
    if not backends:
        return Finding("llama.cpp", found, "make setup, or: pip install -c constraints.txt -e .")
    if list_gpus() and backends == ["cpu"]:
        toolkit = "" if shutil.which("nvcc") else "install the CUDA toolkit (nvcc on the PATH), then: "
        fix = (
            f"the GPU is used once it is built for it: {toolkit}CMAKE_ARGS=-DGGML_CUDA=on pip install --no-deps "
            "--force-reinstall --no-cache-dir --no-binary llama-cpp-python -c constraints.txt llama-cpp-python"
        )
        return Finding("llama.cpp", found, fix, is_required=False)
    return Finding("llama.cpp", found)


def find_ollama() -> Finding:
    """Ask the server at OLLAMA_HOST, or on this machine, for its version."""
    url = ollama_url(os.environ.get("OLLAMA_HOST", ""))
    update = "update it: curl -fsSL https://ollama.com/install.sh | sh"
    try:
        version = server_version(timeout_s=2)
    except ImportError as error:
        return Finding(
            "ollama", f"cannot be asked without {error.name}", f"pip install {error.name}", is_required=False
        )
    except NoServer:
        has_program = shutil.which("ollama") is not None
        fix = "start it: ollama serve" if has_program else f"{update.replace('update', 'install')}; then: ollama serve"
        return Finding("ollama", f"no server answers at {url}", fix, is_required=False)
    except ObserverError:
        return Finding("ollama", f"no Ollama answers at {url}", "check OLLAMA_HOST", is_required=False)
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    fix = ""
    if numbers < QWEN3_SINCE:
        fix = f"Qwen3 needs {'.'.join(map(str, QWEN3_SINCE))}; {update}"
    elif numbers < PROBABILITIES_SINCE:
        fix = f"tells no probabilities before {'.'.join(map(str, PROBABILITIES_SINCE))}; {update}"
    return Finding("ollama", f"{version} at {url}", fix, is_required=False)


def _requirements() -> list[str]:
    """Those of pyproject.toml, as they stood when this project was installed; none where nothing can read them."""
    if importlib.util.find_spec("packaging") is None:  # it comes with transformers, which is then missing too
        return []
    try:
        return importlib.metadata.requires("observer") or []
    except importlib.metadata.PackageNotFoundError:
        return []
