"""What the config leaves to the machine: a batch that fits, with the recipe's rows a step, kept by a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from observer.config import Config, load_config
from observer.errors import ObserverError
from observer.files import write_text
from observer.paths import PROJECT_ROOT
from observer.training.device import Runtime
from observer.training.multiprocess.processes import Launch
from observer.training.planning.batch_size import settle_memory
from observer.training.planning.cost import estimate_memory, training_work
from observer.training.planning.memory import USABLE
from observer.training.planning.plan import rows_per_step
from observer.training.rows import Splits, TokenRow
from observer.weights.size import QWEN3_0_6B

ON_CUDA = Runtime("cuda", "transformers", "bfloat16", ())
ROWS = [TokenRow([*range(140), *[1_000 + number] * 90], 187, "extract") for number in range(64)]
"""An instruction of 140 tokens that all share, 47 of their own, 43 to learn: as ours are."""


def config_of(folder: Path, *overrides: str) -> Config:
    return load_config(PROJECT_ROOT / "configs" / "qwen3-0.6b.yaml", [
        "training.per_device_train_batch_size=auto", f"run.output_dir={folder}", *overrides])  # fmt: skip


def settled(config: Config, free_bytes: float | None, runtime: Runtime = ON_CUDA) -> tuple[tuple[int, int, bool], str]:
    """Rows a batch, batches a step, whether activations are computed again; and what the plan says."""
    found, lines = settle_memory(
        config, runtime, Splits(ROWS, ROWS[:8]), QWEN3_0_6B, None if free_bytes is None else int(free_bytes)
    )
    training = found.training
    assert runtime.launch.n_processes * rows_per_step(found) == config.training.train_batch_size
    return (training.batch_size, training.gradient_accumulation_steps, training.gradient_checkpointing is True), (
        "\n".join(lines)
    )


def need(config: Config, batch_size: int, *, recompute: bool = False) -> float:
    """Free bytes in which such a batch just fits."""
    training = {"per_device_train_batch_size": batch_size, "gradient_checkpointing": recompute}
    settled_config = config.model_copy(update={"training": config.training.model_copy(update=training)})
    return estimate_memory(settled_config, ON_CUDA, training_work(settled_config, ROWS), QWEN3_0_6B) / USABLE + 1


@pytest.mark.parametrize("free_bytes", [80e9, None], ids=["enough", "unknown"])
def test_a_batch_has_all_rows_of_a_step_where_memory_is_enough_or_unknown(
    tmp_path: Path, free_bytes: float | None
) -> None:
    choice, lines = settled(config_of(tmp_path), free_bytes)
    assert choice == (16, 1, False) and lines.startswith("batch 16 rows: training.train_batch_size\nrecompute off")


def test_a_batch_that_does_not_fit_is_taken_in_parts_and_a_step_keeps_its_rows(tmp_path: Path) -> None:
    config = config_of(tmp_path, "training.gradient_checkpointing=false")
    for batch_size in (8, 4, 2, 1):
        choice, lines = settled(config, need(config, batch_size))
        assert choice == (batch_size, 16 // batch_size, False)
        assert lines.startswith(f"batch {batch_size} rows x {16 // batch_size} to a step: 16 at once take ")


def test_the_cheaper_of_smaller_batches_and_recomputing_is_taken(tmp_path: Path) -> None:
    """Half the batch computes each instruction twice: 1.2 times the tokens. Recomputing costs 1.5; an eighth, 2."""
    config = config_of(tmp_path)
    assert settled(config, need(config, 8))[0] == (8, 2, False)
    assert settled(config, max(need(config, 2), need(config, 16, recompute=True)))[0] == (16, 1, True)


@pytest.mark.parametrize("choice", [True, False])
def test_a_config_that_says_whether_to_compute_again_is_followed(tmp_path: Path, choice: bool) -> None:
    found, lines = settled(config_of(tmp_path, f"training.gradient_checkpointing={choice}"), 80e9)
    assert found == (16, 1, choice)
    assert lines.endswith(f"\nrecompute {'on' if choice else 'off'}: gradient_checkpointing says so")


def test_where_nothing_fits_the_smallest_is_tried_and_the_plan_says_so(tmp_path: Path) -> None:
    choice, lines = settled(config_of(tmp_path), 1e9)
    assert choice == (1, 16, True) and "even so it may not fit" in lines


def test_processes_share_a_step_and_an_uneven_share_is_refused(tmp_path: Path) -> None:
    two = Runtime("cuda", "transformers", "bfloat16", (), Launch(0, 2, 0))
    assert settled(config_of(tmp_path), 80e9, two)[0] == (8, 1, False)
    uneven = config_of(tmp_path, "training.train_batch_size=15", "training.gradient_accumulation_steps=2")
    with pytest.raises(ObserverError, match=r"accumulation_steps: given beside[\s\S]*15 rows cannot .* multiple of 2"):
        settled(uneven, 80e9, two)


def test_a_large_step_is_taken_in_batches_of_64(tmp_path: Path) -> None:
    assert settled(config_of(tmp_path, "training.train_batch_size=192"), 500e9)[0] == (64, 3, False)


def test_a_run_keeps_the_batch_it_began_with_whatever_is_free_by_now(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    began, _ = settle_memory(config, ON_CUDA, Splits(ROWS, ROWS[:8]), QWEN3_0_6B, int(need(config, 8)))
    write_text(config.paths.config, began.to_yaml())
    assert rows_per_step(began) == 16 and began.training.batch_size == 8
    choice, lines = settled(config, 80e9)
    assert choice == (8, 2, False) and "batch 8 rows x 2 to a step: as this run began" in lines
    assert settled(config_of(tmp_path, "training.train_batch_size=32"), 80e9)[0] == (32, 1, False)  # another recipe
    assert settled(config_of(tmp_path, "run.name=other"), 80e9)[0] == (16, 1, False)
