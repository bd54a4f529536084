"""How a training treats its user: what is kept, when it stops, what it says, and that nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from observer.config import Config, load_config
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT, cache_folder
from observer.training.batching.order import RowSampler, SharedOrder
from observer.training.device import Runtime, choose_runtime, prepare_backend
from observer.training.multiprocess.processes import Launch, find_launch
from observer.training.planning.memory import memory_errors_explained
from observer.training.planning.plan import count_parameters, count_steps
from observer.training.prepare import check_settings
from observer.training.progress import ProgressCallback, RunLog, read_metrics
from observer.training.rows import TokenRow, encode_with, load_splits
from observer.weights.base import load_tokenizer
from observer.weights.size import known_shape
from tests.support.tiny_runs import tiny_config
from tests.training.test_training import metrics_of, trained

ON_CPU = Runtime("cpu", "transformers", "float32", ())


def contrary_config(folder: Path, base: Path, *overrides: str) -> Config:
    """A run whose validation rows say the contrary of what is trained: its eval loss soon rises."""
    config = tiny_config(folder, base, "training.learning_rate=2e-2", "training.lr_scheduler_type=constant",
                         "training.eval_steps=2", "training.num_train_epochs=6", *overrides)  # fmt: skip
    for path, label in ((config.data.train, "DISCARD"), (config.data.val, "IMPORTANT")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        graded = "".join(line for line in lines if '"task": "grade"' in line)
        path.write_text(graded.replace('"content": "DISCARD"', f'"content": "{label}"'), encoding="utf-8")
    return config


def eval_losses(records: list[dict[str, Any]]) -> dict[int, float]:
    return {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}


def best_step(records: list[dict[str, Any]]) -> int:
    losses = eval_losses(records)
    return min(losses, key=losses.__getitem__)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def terminate_after(metrics: Path, n_records: int) -> None:
    while len(read_metrics(metrics)) < n_records:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Config, list[dict[str, Any]]]:
    """An uncut training whose best step is not its last, with early stopping too patient to end it."""
    folder = tmp_path_factory.mktemp("diverged")
    config = contrary_config(folder, tiny_model, "training.early_stopping_patience=9")
    return config, trained(config)


def test_the_adapter_saved_is_the_one_of_the_lowest_eval_loss_and_the_log_says_which(
    diverged: tuple[Config, list[dict[str, Any]]],
) -> None:
    config, records = diverged
    best = best_step(records)
    assert best < 12, "the eval loss was to rise"
    saved, kept = weights(config.paths.adapter), weights(config.paths.checkpoints / f"checkpoint-{best}")
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    assert f"adapter of step {best} saved: eval loss" in config.paths.log.read_text(encoding="utf-8")


def test_progress_tells_speed_and_memory_and_records_count_the_tokens_of_the_rows(
    diverged: tuple[Config, list[dict[str, Any]]],
) -> None:
    config, records = diverged
    line = next(line for line in config.paths.log.read_text(encoding="utf-8").splitlines() if "step     4/12" in line)
    assert "tokens/s" in line and "GB" in line and "left" in line
    rows = load_splits(config, encode_with(load_tokenizer(Path(config.model.base)))).train
    n_tokens = [record["num_tokens"] for record in records if "loss" in record]
    assert sum(n_tokens) == 6 * sum(map(len, rows))


def test_a_cut_run_goes_on_to_the_same_records_and_the_same_adapter(
    tmp_path: Path, diverged: tuple[Config, list[dict[str, Any]]]
) -> None:
    uncut, records = diverged
    config = contrary_config(tmp_path, Path(uncut.model.base), "training.early_stopping_patience=9")
    threading.Thread(target=terminate_after, args=(config.paths.metrics, 9), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        trained(config)
    assert not config.paths.adapter.exists() and len(metrics_of(config)) < len(records)
    assert trained(config) == records
    assert "resuming from" in config.paths.log.read_text(encoding="utf-8")
    name = "adapter_model.safetensors"
    assert (config.paths.adapter / name).read_bytes() == (uncut.paths.adapter / name).read_bytes()


def test_a_training_that_does_not_improve_stops_early_and_says_so(
    tmp_path: Path, diverged: tuple[Config, list[dict[str, Any]]]
) -> None:
    uncut, records = diverged
    base = Path(uncut.model.base)
    config = contrary_config(tmp_path, base, "training.early_stopping_patience=1", "training.load_best=false")
    losses = eval_losses(records)
    stopped_at = next(step for step in losses if losses[step] > min(losses[n] for n in losses if n <= step))
    assert trained(config) == [record for record in records if record["step"] <= stopped_at]
    log = config.paths.log.read_text(encoding="utf-8")
    assert f"stopped early at step {stopped_at}" in log and f"adapter of step {stopped_at} saved, the last one" in log
    saved, last = weights(config.paths.adapter), weights(config.paths.checkpoints / f"checkpoint-{stopped_at}")
    assert all(torch.equal(saved[name], last[name]) for name in last)


def test_early_stopping_counts_the_evaluations_before_a_resume(
    tmp_path: Path, diverged: tuple[Config, list[dict[str, Any]]]
) -> None:
    """Begun without it, cut between two evaluations that are no lower than one before, and resumed with it."""
    base, records = Path(diverged[0].model.base), diverged[1]
    (*steps, _), (*losses, _) = zip(*eval_losses(records).items(), strict=True)
    cut = next(n for n in range(1, len(steps) - 1) if min(losses[:n]) <= min(losses[n : n + 2]))
    trained(contrary_config(tmp_path, base, f"training.max_steps={steps[cut]}"))
    config = contrary_config(tmp_path, base, "training.early_stopping_patience=2")
    expected = [record for record in records if record["step"] <= steps[cut + 1]]
    assert trained(config, resume=True) == expected
    assert trained(config, resume=True) == expected, "and from its last checkpoint no step is made"


def test_reporters_that_are_not_installed_are_named_together_with_all_else(tmp_path: Path, tiny_model: Path) -> None:
    missing = [name for name in ("tensorboard", "trackio", "wandb") if find_spec(name) is None]
    if not missing:
        pytest.skip("all of them are installed")
    config = tiny_config(tmp_path, tiny_model, f"training.report_to=[{', '.join(missing)}]", "training.optim=adam")
    with pytest.raises(ObserverError) as refused:
        check_settings(config, ON_CPU)
    lines = str(refused.value).splitlines()
    assert "unknown optimizer" in lines[0]
    for name, line in zip(missing, lines[1:], strict=True):
        assert line.startswith(f"training.report_to: {name} is not installed") and f"pip install {name}" in line


def test_compiled_blocks_are_refused_over_unsloths_forward(tmp_path: Path, tiny_model: Path) -> None:
    config = tiny_config(tmp_path, tiny_model, "training.torch_compile=true")
    check_settings(config, Runtime("cuda", "transformers", "bfloat16", ()))
    with pytest.raises(ObserverError, match=r"^training.torch_compile: .*model.backend=transformers$"):
        check_settings(config, Runtime("cuda", "unsloth", "bfloat16", ()))


def test_what_is_compiled_stays_compiled_in_our_cache_unless_the_user_has_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is unset again after this test
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    prepare_backend(ON_CPU)
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) == cache_folder() / "torchinductor"
    assert tmp_path in cache_folder().parents and os.environ["TRITON_CACHE_DIR"] == "elsewhere"


def test_max_steps_of_0_leave_the_epochs(tmp_path: Path) -> None:
    from observer.training.trainer import training_arguments

    config = tiny_config(tmp_path, tmp_path, "training.max_steps=0")
    assert count_steps(config, 24) == 12 and training_arguments(config, ON_CPU).max_steps == -1


@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: np.empty(10**15)], ids=["torch", "numpy"])
def test_memory_that_ends_is_one_line_with_what_to_lower(tmp_path: Path, tiny_model: Path, allocate: Any) -> None:
    config = tiny_config(tmp_path, tiny_model, "training.gradient_accumulation_steps=3")
    with pytest.raises(ObserverError) as ended, memory_errors_explained(config, ON_CPU, planned_bytes=1.5e9):
        allocate()
    message = str(ended.value)
    assert message.startswith("cpu: out of memory; at most ") and "about 1.5 GB planned" in message
    assert "training.per_device_train_batch_size=4 (now 8) with training.gradient_accumulation_steps=6" in message
    assert "training.gradient_checkpointing=true" in message and "\n" not in message


def test_other_errors_are_left_as_they_are(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RuntimeError, match="inconsistent"), \
         memory_errors_explained(tiny_config(tmp_path, tiny_model), ON_CPU, 1.0):  # fmt: skip
        raise RuntimeError("inconsistent tensor size")


@pytest.mark.parametrize(
    ("base", "n_parameters"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B-Base", 1_720_574_976),
        ("someone/qwen3-4b", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_larger_bases_are_planned_by_their_name(base: str, n_parameters: int) -> None:
    assert count_parameters(known_shape(base)) == n_parameters


def test_another_base_is_planned_once_it_is_here() -> None:
    with pytest.raises(ObserverError, match="download it first"):
        known_shape("Qwen/Qwen3-1000B")


def test_the_launch_is_read_from_what_torchrun_sets() -> None:
    assert find_launch({}) == Launch(0, 1, 0) and find_launch({}).is_first
    second = find_launch({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"})
    assert second == Launch(5, 8, 1, n_on_machine=4) and second.is_shared and not second.is_first


def test_a_launch_of_several_processes_leaves_all_gpus_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(PROJECT_ROOT / "configs" / "nano.yaml", ["run.device=cpu"])
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    runtime = choose_runtime(config)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert any(reason.startswith("processes 2") for reason in runtime.reasons)


def test_one_process_sees_one_gpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(PROJECT_ROOT / "configs" / "nano.yaml", ["run.device=cuda"])
    for given, seen in ((None, "0"), ("", ""), ("2", "2"), ("2,3", "2")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        reasons = choose_runtime(config, dry_run=True).reasons
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
        assert any("CUDA_VISIBLE_DEVICES=2,3" in reason for reason in reasons) == (given == "2,3")


@pytest.mark.parametrize("n_rows", [1, 16, 17, 24, 30])
@pytest.mark.parametrize(("n_processes", "batch_size"), [(2, 4), (4, 2), (3, 2)])
def test_each_step_has_the_rows_of_one_process_with_the_whole_batch(
    n_rows: int, n_processes: int, batch_size: int
) -> None:
    filler, whole = n_rows, n_processes * batch_size
    alone = RowSampler([TokenRow([0] * (10 + n % 7), 5, "grade") for n in range(n_rows)], whole, seed=1)
    shared = SharedOrder(alone, n_processes, batch_size, filler)
    order = list(shared)
    assert len(order) == len(shared)
    steps = [order[start : start + whole] for start in range(0, len(order), whole)]
    for number, step in enumerate(steps):
        shares = [[row for row in step[n : n + batch_size] if row != filler] for n in range(0, whole, batch_size)]
        assert sorted(row for share in shares for row in share) == sorted(list(alone)[number * whole :][:whole])
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    config = load_config(PROJECT_ROOT / "configs" / "nano.yaml", [
        f"training.per_device_train_batch_size={batch_size}", "training.num_train_epochs=1"])  # fmt: skip
    assert count_steps(config, n_rows, n_processes) == len(steps)


@pytest.mark.parametrize(
    ("dtype", "on_fast", "on_others"),
    [
        ("auto", ("bfloat16", "computes in it"), ("float32", "does not compute in bfloat16")),
        ("bfloat16", ("bfloat16", "says so"), ("bfloat16", "float32 is many times faster")),
        ("float16", ("float32", "does not train on CPU"), ("float32", "does not train on CPU")),
    ],
)
def test_a_cpu_trains_in_bfloat16_by_itself_only_where_it_computes_in_it(
    dtype: str, on_fast: tuple[str, str], on_others: tuple[str, str]
) -> None:
    runtime = choose_runtime(Config.model_validate({"run": {"device": "cpu"}, "model": {"dtype": dtype}}))
    is_fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    chosen, reason = on_fast if is_fast else on_others
    assert runtime.dtype == chosen and runtime.reasons[2].endswith(reason)


def test_float32_on_a_gpu_is_not_left_to_unsloth_which_computes_in_bfloat16() -> None:
    def chosen(backend: str) -> Runtime:
        model = {"dtype": "float32", "backend": backend}
        return choose_runtime(Config.model_validate({"run": {"device": "cuda"}, "model": model}), dry_run=True)

    runtime = chosen("auto")
    assert runtime.backend == "transformers" and "in bfloat16" in runtime.reasons[1]
    with pytest.raises(ObserverError, match=r"^model.dtype: float32, .*model.backend=transformers"):
        chosen("unsloth")


def test_tokens_a_second_are_those_of_the_work_done_not_of_the_work_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's step ends on the host at once; its loss, which the record holds, is there when the work is done."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    log = RunLog(tmp_path / "training.log", append=False)
    progress = ProgressCallback(log, tmp_path / "metrics.jsonl", 1, device="cpu")
    record = {"loss": 1.0, "learning_rate": 1e-3, "epoch": 1.0, "num_tokens": 200}
    events: list[tuple[float, str, dict[str, Any]]] = [
        (0.01, "on_step_begin", {}), (0.01, "on_step_end", {}), (1.98, "on_log", {"logs": record}),
        (5.0, "on_log", {"logs": {"eval_loss": 1.0}}), (3.0, "on_save", {}),
    ] * 2  # fmt: skip
    args, state, control = TrainingArguments(str(tmp_path)), TrainerState(max_steps=2), TrainerControl()
    progress.on_train_begin(args, state, control)
    for seconds, event, given in events:
        clock[0] += seconds
        state.global_step += event == "on_step_begin"
        getattr(progress, event)(args, state, control, **given)
    lines = [line for line in log.path.read_text().splitlines() if "tokens/s" in line]  # type: ignore[union-attr]
    assert len(lines) == 2 and all("  100 tokens/s" in line for line in lines), lines


def test_a_record_of_several_steps_counts_as_so_many(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "training.log", append=False)
    progress = ProgressCallback(log, tmp_path / "metrics.jsonl", 4, device="cpu")
    args, state, control = TrainingArguments(str(tmp_path)), TrainerState(max_steps=8), TrainerControl()
    progress.on_train_begin(args, state, control)
    for step, loss in ((1, 5.0), (4, 1.0), (8, 1.0)):
        state.global_step = step
        record = {"loss": loss, "learning_rate": 1e-3, "epoch": 1.0, "num_tokens": 200}
        progress.on_log(args, state, control, logs=record)
    lines = [line for line in log.path.read_text().splitlines() if "tokens/s" in line]  # type: ignore[union-attr]
    assert ["loss 2.0000" in line for line in lines] == [True, False] and "loss 1.0000" in lines[1]
    assert progress.bar is not None and progress.bar.n == (0 if progress.bar.disable else 8)
