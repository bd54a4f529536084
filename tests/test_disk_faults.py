"""A full or a read-only disk, on real ones: one line that names the file, nothing half-written, and a way on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from observer.cli import main as observer
from observer.config import Config
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.export.gguf.write import gguf_bytes, write_gguf
from observer.export.quantize.quantize import quantize
from observer.files import check_writable, write_text
from observer.memory.store import Store
from observer.observe.observations_file import open_ledger
from observer.training.checkpoints import last_whole_checkpoint
from observer.training.progress import read_metrics
from tests.memory.test_diff import said
from tests.support.observing_server import ObservingServer
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.tiny_runs import tiny_config, write_tiny_run
from train_sft import main as train_sft

FULL = "the disk is full; free some space and run the same command again"
READ_ONLY = "cannot be written or read here; fix its permissions, or name another folder"
JOB = said("User WORKS_AT Siemens ongoing", "User LIVES_IN Porto ongoing")
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "400k") as disk:
        yield disk


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObservingServer]:
    with ObservingServer().running() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        yield server


def write_chats(folder: Path, n_rows: int) -> Path:
    path = folder / "chats.jsonl"
    rows = [{"id": f"row-{number}", "user_message": f"I live in Lisbon {number}"} for number in range(n_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Full.


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_goes_and_the_training_goes_on_once_it_does(
    tmp_path: Path, tiny_model: Path, disk: SmallDisk
) -> None:
    from tests.training.test_training import trained

    config = tiny_config(tmp_path, tiny_model, f"run.output_dir={disk.root}", "training.num_train_epochs=2")
    disk.remount("size=700k")  # for one checkpoint, not for two
    with pytest.raises(ObserverError, match=f"checkpoints: {FULL}"):
        trained(config)
    checkpoint = last_whole_checkpoint(config.paths.checkpoints)
    assert checkpoint is not None and checkpoint.name == "checkpoint-4"
    assert {path.name for path in config.paths.checkpoints.iterdir()} == {"checkpoint-4", "inputs.json"}
    disk.remount("size=64m")
    assert [record["step"] for record in trained(config) if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert "resuming from" in config.paths.log.read_text() and config.paths.adapter.is_dir()


@pytest.mark.parametrize("what", ["merged", "adapter GGUF", "f16", "q4_k_m", "imatrix"])
def test_what_is_made_of_the_adapter_is_there_whole_or_not_at_all(
    what: str, tmp_path: Path, tiny_model: Path, disk: SmallDisk
) -> None:
    def make() -> object:
        return _makers(tmp_path, tiny_model, disk.root)[what]()

    with disk.full(), pytest.raises(ObserverError) as refused:
        make()
    assert str(refused.value).endswith(f": {FULL}") and str(disk.root) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert disk.names() == set()
    disk.remount("size=64m")
    make()
    assert disk.names()


def _makers(folder: Path, base: Path, out: Path) -> dict[str, Callable[[], object]]:
    """What a run makes of its adapter, each written to `out`."""
    import torch
    from safetensors.torch import save_file

    from observer.export.gguf.adapter import write_adapter_gguf
    from observer.export.quantize.imatrix import compute_imatrix
    from observer.export.quantize.imatrix_file import write_imatrix
    from observer.weights.merge import merge_adapter

    adapter, full = folder / "adapter", folder / "full.gguf"
    adapter.mkdir(exist_ok=True)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    sides = {f"{module}.lora_A.weight": torch.ones(1, 256), f"{module}.lora_B.weight": torch.ones(256, 1)}
    save_file(sides, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    if not full.exists():
        write_gguf(base, full, "f16", name="tiny")
    return {
        "merged": lambda: merge_adapter(adapter, base, out / "merged"),
        "adapter GGUF": lambda: write_adapter_gguf(adapter, base, out / "adapter.gguf", name="tiny"),
        "f16": lambda: write_gguf(base, out / "f16.gguf", "f16", name="tiny"),
        "q4_k_m": lambda: quantize(full, out / "q4_k_m.gguf", "q4_k_m"),
        "imatrix": lambda: write_imatrix(compute_imatrix(base, [[1, 2, 3]]), out / "imatrix.gguf"),
    }


@pytest.mark.parametrize("quantization", ["f16", "q4_k_m"])
def test_a_gguf_that_only_begins_to_fit_leaves_nothing(
    quantization: str, tmp_path: Path, tiny_model: Path, disk: SmallDisk
) -> None:
    assert gguf_bytes(tiny_model, "f16") > 800_000
    with pytest.raises(ObserverError, match=f"{quantization}.gguf: {FULL}"):
        _makers(tmp_path, tiny_model, disk.root)[quantization]()
    assert disk.names() == set()


def test_answers_that_do_not_fit_are_asked_again_once_they_do(
    tmp_path: Path, server: ObservingServer, disk: SmallDisk, capsys: Captured
) -> None:
    chats, out = write_chats(tmp_path, 100), disk.root / "out.jsonl"
    command = ["grade", str(chats), "--out", str(out), "--model", "ollama:watcher"]
    disk.remount("size=4k")  # not for the answers of the first batch
    assert observer(command) == 1
    assert f"error: {out}: {FULL}" in capsys.readouterr().err
    disk.remount("size=1m")
    assert observer(command) == 0
    assert sorted(json.loads(line)["id"] for line in out.read_text().splitlines()) == sorted(
        f"row-{number}" for number in range(100)
    )


def test_a_memory_on_a_full_disk_keeps_what_it_has_and_takes_the_rest_later(disk: SmallDisk) -> None:
    path = disk.root / "memory.sqlite"
    with Store(path) as store:
        store.apply(JOB, "first")
    with disk.full(), pytest.raises(ObserverError) as refused, Store(path) as store:
        for number in range(1000):
            store.apply(said(f"User LIKES tea{number} ongoing"), f"later-{number}")
    assert str(refused.value) == f"{path}: {FULL}"
    with Store(path) as store:
        assert {"Siemens", "Porto"} <= {fact.object for fact in store.known()}
        store.apply(said("User LIKES coffee ongoing"), "last")
        assert store.has("last")


# Read-only.


def test_every_writer_names_a_disk_that_cannot_be_written(
    tmp_path: Path, tiny_model: Path, disk: SmallDisk, capsys: Captured
) -> None:
    write_text(disk.root / "run" / "config.yaml", Config().to_yaml())
    config = write_tiny_run(tmp_path, tiny_model)
    chats = write_chats(tmp_path, 1)
    disk.remount("ro")
    writers: list[Callable[[], object]] = [
        lambda: check_writable(disk.root / "run"),
        lambda: write_text(disk.root / "report.json", "{}"),
        lambda: open_ledger(disk.root / "out.jsonl", "grade").__enter__(),
        lambda: Store(disk.root / "memory.sqlite"),
    ]
    for write in writers:
        with pytest.raises(ObserverError, match=READ_ONLY):
            write()
    for command in (
        lambda: train_sft(["--config", str(config), "--set", f"run.output_dir={disk.root}"]),
        lambda: observer(["export", str(tiny_model), "--out", str(disk.root / "out"), "--types", "f16"]),
        lambda: observer(["grade", str(chats), "--out", str(disk.root / "out.jsonl")]),
        lambda: observer(["observe", str(chats), "--memory", str(disk.root / "memory.sqlite")]),
    ):
        assert run_cli(command, debug=False) == 1
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith(f"error: {disk.root}") and READ_ONLY in told


# Memory that ends.


@pytest.mark.slow
def test_a_batch_that_memory_does_not_hold_says_what_to_lower(tmp_path: Path, tiny_model: Path) -> None:
    import resource

    from observer.training.device import choose_runtime, prepare_backend
    from observer.training.prepare import prepare
    from train_sft import train_adapter

    config = tiny_config(tmp_path, tiny_model, "training.per_device_train_batch_size=512", n_rows=512)
    runtime = choose_runtime(config)
    prepare_backend(runtime)
    prepared = prepare(config, runtime)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, before[1]))
    try:
        with pytest.raises(ObserverError) as ended:
            train_adapter(prepared, runtime, "inputs", resume=False)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    message = str(ended.value)
    assert message.startswith("cpu: out of memory") and "\n" not in message
    assert "--set training.per_device_train_batch_size=256 (now 512)" in message
    assert not read_metrics(config.paths.metrics)
