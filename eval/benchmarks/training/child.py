"""One contestant in a process of its own, kept warm: it trains a round when told to, and reports what it took.

The benchmark writes a JSON command a line to its input and reads a JSON answer a line from its output. All that
libraries print goes to stderr, which the benchmark keeps as the contestant's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks.training.trainers import CONTESTANTS, Entry
from observer.config import load_config
from observer.training.device import Device
from observer.training.planning.memory import peak_memory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from observer.training.rows import TokenRow

PROBE_ROWS = 8
"""Rows of the probe, whatever the batch size."""
PROBE_B_STD = 0.01
"""The probe's gradients are taken with B away from zero, where those of A would vanish."""

_CLEAR_REFS = Path("/proc/self/clear_refs")


def main() -> int:
    config_path, kind, warm_up_steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session(config_path, kind)
    commands: dict[str, Callable[[], dict[str, Any]]] = {
        "start": lambda: session.start(warm_up_steps),
        "round": session.round,
        "nll": session.nll,
    }
    for line in sys.stdin:
        answers.write(json.dumps(commands[line.strip()]()) + "\n")
        answers.flush()
    return 0


class Session:
    """A contestant's trainer, reused from round to round; each round starts from the same adapter."""

    def __init__(self, config_path: Path, kind: str) -> None:
        self.config, self.kind = load_config(config_path), kind

    def start(self, warm_up_steps: int) -> dict[str, Any]:
        """Import, load, take the NLL and the probe, and train the first steps, which compile and allocate."""
        started = time.perf_counter()
        self.runtime = self._import()
        imported = time.perf_counter()
        self.trainer = self._build()
        self.model: Any = self.trainer.model
        built = time.perf_counter()
        self.watch = _make_watch(self.trainer)
        before = self.nll()["nll"]
        self._train(warm_up_steps)
        return {
            "import_s": imported - started,
            "load_s": built - imported,
            "first_step_s": self.watch.first_step_s,
            "warm_up_steps": self.watch.steps,
            "nll_before": before,
            "probe_loss": self.watch.probe[0],
            "probe_grad_norm": self.watch.probe[1],
            "n_trainable": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        }

    def round(self) -> dict[str, Any]:
        """Train all rows from the first adapter on; seconds are those of the whole `Trainer.train` call."""
        reset_peak(self.runtime.device)
        cpu_started = time.process_time()
        seconds = self._train(None)
        taken = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu_started,
            "steps": self.watch.steps,
            "rows": self.watch.rows,
            "peak_bytes": peak_bytes(self.runtime.device),
            "train_loss": self.watch.last_loss,
        }
        give_back_memory(self.runtime.device)
        return taken

    def nll(self) -> dict[str, Any]:
        return {"nll": plain_nll(self.model, self.entry.prepared.splits.val, self.runtime.dtype)}

    def _import(self) -> Any:
        from observer.training.device import choose_runtime, prepare_backend

        runtime = choose_runtime(self.config)
        prepare_backend(runtime)
        import trl  # noqa: F401

        return runtime

    def _build(self) -> Trainer:
        from transformers.trainer_callback import PrinterCallback

        from observer.training.prepare import prepare

        prepared = prepare(self.config, self.runtime)
        self.entry = Entry(prepared.config, self.runtime, prepared)
        trainer = CONTESTANTS[self.kind].build(self.entry)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train(self, n_steps: int | None) -> float:
        from transformers import set_seed

        trainer = self.trainer
        reset_adapter(trainer.model, self.config.run.seed)
        trainer.optimizer = trainer.lr_scheduler = None  # type: ignore[assignment]
        self.watch.reset(n_steps)
        set_seed(self.config.run.seed)
        synchronize(self.runtime.device)
        started = time.perf_counter()
        trainer.train()
        synchronize(self.runtime.device)
        return time.perf_counter() - started


def _make_watch(trainer: Trainer) -> Any:
    """The callback that counts, stops a warm-up, keeps the trainer from saving, and takes the probe."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def reset(self, n_steps: int | None) -> None:
            self.n_steps, self.steps, self.rows, self.last_loss = n_steps, 0, 0, None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.steps = state.global_step
            control.should_save = control.should_evaluate = False
            if self.n_steps is None:
                return
            if self.steps == 1:
                synchronize(args.device.type)
                self.first_step_s = time.perf_counter() - self.began
            if self.steps >= self.n_steps or self.steps >= state.max_steps:
                self.probe = take_probe(trainer)
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.last_loss = (logs or {}).get("loss", self.last_loss)

    watch = Watch()
    collate: Any = trainer.data_collator

    def counting(rows: Sequence[Any]) -> Any:
        watch.rows += len(rows)
        return collate(rows)

    trainer.data_collator = counting
    trainer.add_callback(watch)
    return watch


def take_probe(trainer: Trainer) -> tuple[float, float]:
    """Loss and gradient norm of the first PROBE_ROWS rows as this trainer computes them, B of the adapter not zero."""
    import torch

    n_rows = min(PROBE_ROWS, len(trainer.train_dataset))  # type: ignore[arg-type]
    rows = [trainer.train_dataset[number] for number in range(n_rows)]  # type: ignore[index]
    model: Any = trainer.model_wrapped
    reset_adapter(model, 1, b_std=PROBE_B_STD)
    model.zero_grad()
    batches, n_items = trainer.get_batch_samples(iter([trainer.data_collator(rows)]), 1, trainer.args.device)
    loss = trainer.training_step(model, batches[0], n_items)
    scaler = trainer.accelerator.scaler
    scale = scaler.get_scale() if scaler is not None else 1.0
    gradients = [parameter.grad.float() for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item() / scale
    model.zero_grad()
    return loss.item(), norm


def reset_adapter(model: Any, seed: int, *, b_std: float = 0.0) -> None:
    """LoRA's usual start, the same for every backend: A uniform as PEFT has it, B zero or of `b_std`."""
    import torch

    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.replace("_orig_mod.", "").removeprefix("module.")
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}-{name}".encode()))
        values = torch.empty(parameter.shape, dtype=torch.float32)
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5  # kaiming_uniform_(a=sqrt(5))
            values.uniform_(-bound, bound, generator=generator)
        else:
            assert "lora_B" in name, f"{name} is trained and no LoRA weight"
            values.normal_(0, b_std, generator=generator) if b_std else values.zero_()
        parameter.data.copy_(values)


def plain_nll(model: Any, rows: Sequence[TokenRow], dtype: str) -> float:
    """Token-mean NLL of the completions, a row at a time through the model's own forward: no layout to get wrong."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        for row in rows:
            ids = torch.tensor([row.input_ids], device=device)
            nll = _row_nll(model(input_ids=ids, use_cache=False).logits[0], ids[0], row.prompt_length)
            total, count = total + nll.sum().item(), count + len(nll)
    model.train(was_training)
    return total / count


def _row_nll(logits: Tensor, ids: Tensor, prompt_length: int) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(logits[prompt_length - 1 : -1].float(), ids[prompt_length:], reduction="none")


def synchronize(device: str) -> None:
    """Wait until the GPU has done what it was given, so that a clock read now is true."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def give_back_memory(device: str) -> None:
    """Free what the round left, for the contestants that wait beside this one; a CPU's memory is the machine's."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # glibc's alone
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak(device: str) -> None:
    """Forget the high-water mark of loading: the kernel's for this process, or the CUDA allocator's."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def peak_bytes(device: Device) -> int | None:
    """The most memory since `reset_peak`: allocated tensors on CUDA, resident on the CPU; None where Linux is not."""
    return peak_memory(device) if device == "cuda" or _CLEAR_REFS.exists() else None


if __name__ == "__main__":
    sys.exit(main())
