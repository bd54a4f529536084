"""A model's speed and size, measured in a process of its own. The figures themselves are the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.quantizations.speed import measure_speed
from observer.errors import ObserverError
from observer.prompts import Task, prompt_messages
from observer.training.planning.memory import peak_memory


def row(task: Task, exchange: str) -> dict:
    return {"task": str(task), "prompt": prompt_messages(task, exchange)}


def test_every_figure_is_measured_for_the_rows_there_are(tiny_gguf: Path) -> None:
    rows = [row(Task.GRADE, f"USER: I live in {place}") for place in ("Oslo", "Rome", "Lima")]
    speed = measure_speed(tiny_gguf, rows, n_threads=1)
    assert speed.size_bytes == tiny_gguf.stat().st_size
    assert (speed.n_grade, speed.n_extract, speed.n_threads) == (3, 0, 1)
    assert min(speed.load_s, speed.prefill_tokens_per_s, speed.decode_tokens_per_s) > 0
    assert speed.grade_examples_per_s
    assert speed.grade_examples_per_s > 0
    assert speed.extract_examples_per_s is speed.ttft_ms is None


def test_memory_is_the_models_and_not_that_of_who_asks(tiny_gguf: Path) -> None:
    ballast = bytearray(1_200_000_000)
    ballast[:: 1 << 12] = b"x" * len(range(0, len(ballast), 1 << 12))  # touch every page
    mine = peak_memory("cpu")
    speed = measure_speed(tiny_gguf, [row(Task.EXTRACT, "USER: I live in Oslo")], n_threads=1)
    assert mine > len(ballast)
    assert speed.peak_bytes < len(ballast)
    assert speed.ttft_ms
    assert speed.extract_examples_per_s


def test_a_file_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ObserverError, match=r"^\S*broken\.gguf: not a GGUF file[^\n]*$"):
        measure_speed(path, [])
