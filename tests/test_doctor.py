"""What `observer doctor` finds: real packages here, and real servers on loopback that say what Ollama may say."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from observer.config import Config
from observer.doctor import Finding, examine, find_extras, find_llama_cpp, find_ollama, find_torch, find_unfit
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT
from observer.training.cuda import Gpu, compiler_lacks, cuda_obstacle, torch_cuda
from observer.training.device import choose_runtime
from tests.support.loopback import Loopback, Sent


def answering(body: str) -> AbstractContextManager[str]:
    """A server that answers everything with `body`."""
    server = Loopback(lambda _: Sent(body.encode()))
    return server.serving(server.host)


def ollama_that_says(body: str, monkeypatch: pytest.MonkeyPatch) -> Finding:
    with answering(body) as host:
        monkeypatch.setenv("OLLAMA_HOST", host)
        return find_ollama()


@pytest.mark.parametrize(
    ("body", "found", "fix"),
    [
        ('{"version": "0.32.15"}', "0.32.15 at ", ""),
        ('{"version": "0.32.15-rc1"}', "0.32.15-rc1 at ", ""),
        ('{"version": "0.12.3"}', "0.12.3 at ", "tells no probabilities before 0.12.11; update it: curl"),
        ('{"version": "0.6.5"}', "0.6.5 at ", "Qwen3 needs 0.6.6; update it: curl"),
        ('{"ok": true}', "no Ollama answers at ", "check OLLAMA_HOST"),
        ("<html>", "no Ollama answers at ", "check OLLAMA_HOST"),
        ("[]", "no Ollama answers at ", "check OLLAMA_HOST"),
    ],
)
def test_ollama_is_asked_for_its_version(body: str, found: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = ollama_that_says(body, monkeypatch)
    assert finding.found.startswith(found) and finding.fix.startswith(fix) and bool(finding.fix) == bool(fix)
    assert not finding.is_fatal


def test_no_server_is_a_note_that_tells_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering("") as host:
        pass
    monkeypatch.setenv("OLLAMA_HOST", host)
    finding = find_ollama()
    assert finding.found == f"no server answers at http://{host}" and "ollama serve" in finding.fix


def test_the_build_of_llama_cpp_is_told() -> None:
    finding = find_llama_cpp()
    assert finding.found.startswith("ggml ") and "cpu" in finding.found and not finding.is_fatal


def test_what_is_installed_here_fits_what_is_asked_for() -> None:
    assert find_unfit() == []


def test_every_extra_has_a_line_that_installs_it() -> None:
    findings = {finding.name: finding for finding in find_extras()}
    assert "extra label" in findings and "extra dev" not in findings
    for name, finding in findings.items():
        assert not finding.fix or name.removeprefix("extra ") in finding.fix


def test_nothing_is_told_twice() -> None:
    names = [finding.name for finding in examine()]
    assert len(names) == len(set(names))


@pytest.fixture
def with_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose driver shows a GPU, and on whose PATH nothing else is; the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    put_program(programs, "nvidia-smi", "echo NVIDIA H100, 81559 MiB, 550.54.15")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CC", raising=False)
    return programs


def put_program(folder: Path, name: str, script: str = "") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("cuda", "driver", "wanted"),
    [
        ("13.0", "550.54.15", "580"),
        ("13.0", "580.65.06", None),
        ("12.8", "535.183.01", None),
        ("12.8", "470.256.02", "525"),
        ("11.8", "450.80.02", None),
        ("14.1", "550.54.15", None),
        ("13.0", "[N/A]", None),
    ],
)
def test_a_driver_too_old_for_torch_is_named_with_the_one_it_takes(cuda: str, driver: str, wanted: str | None) -> None:
    obstacle = cuda_obstacle([Gpu("NVIDIA H100, 81559 MiB", driver)], cuda)
    assert (obstacle is None) == (wanted is None)
    assert obstacle is None or (driver in obstacle and cuda in obstacle and f"install driver {wanted}" in obstacle)


def test_a_gpu_is_shown_with_its_driver_and_what_kernels_are_compiled_with(with_gpu: Path) -> None:
    findings = {finding.name: finding for finding in find_torch()}
    assert findings["gpu"].found == "NVIDIA H100, 81559 MiB, driver 550.54.15"
    assert findings["compiler"].found.startswith("without gcc or clang") and not findings["compiler"].is_fatal
    put_program(with_gpu, "gcc")
    assert "gcc" not in {finding.name: finding for finding in find_torch()}["compiler"].found


def test_llama_cpp_is_built_for_a_gpu_that_is_not_used_where_nvcc_is(with_gpu: Path) -> None:
    assert "install the CUDA toolkit (nvcc on the PATH), then: CMAKE_ARGS=-DGGML_CUDA=on" in find_llama_cpp().fix
    put_program(with_gpu, "nvcc")
    assert "toolkit" not in find_llama_cpp().fix


def test_a_run_says_why_torch_cannot_use_the_gpu(with_gpu: Path) -> None:
    """torch is a CPU build where these tests run; with a driver too old it is the same branch."""
    if torch_cuda() is not None:
        pytest.skip("torch was built for CUDA")
    assert "torch was built without CUDA" in choose_runtime(Config()).reasons[0]
    with pytest.raises(ObserverError, match=r"^run.device: cuda, but torch was built without CUDA; pip install"):
        choose_runtime(Config.model_validate({"run": {"device": "cuda"}}))


def test_unsloth_is_taken_only_where_its_kernels_can_be_compiled(with_gpu: Path) -> None:
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("unsloth is not installed")
    config = Config.model_validate({"run": {"device": "cuda"}})
    assert choose_runtime(config, dry_run=True).backend == "transformers"
    wants_unsloth = config.model_copy(update={"model": config.model.model_copy(update={"backend": "unsloth"})})
    with pytest.raises(ObserverError, match=r"^model.backend: unsloth's kernels want gcc or clang"):
        choose_runtime(wants_unsloth, dry_run=True)
    put_program(with_gpu, "gcc")
    assert choose_runtime(config, dry_run=True).backend == ("transformers" if compiler_lacks() else "unsloth")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("programs", "is_built"), [(("nvcc",), False), (("nvcc", "nvidia-smi"), True), ((), False)])
def test_the_set_up_builds_llama_cpp_for_cuda_where_there_is_a_gpu_and_a_compiler(
    tmp_path: Path, programs: tuple[str, ...], is_built: bool
) -> None:
    for name in programs:
        put_program(tmp_path, name)
    make = str(shutil.which("make"))
    command = [make, "--dry-run", "--always-make", "setup", f"VENV={tmp_path / 'venv'}", "SHELL=/bin/sh"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if line.endswith(" llama-cpp-python")]
    assert ("-DGGML_CUDA=on" in line) == is_built, done.stderr
