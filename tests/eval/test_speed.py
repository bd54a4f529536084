"""A model's speed and size, measured in a process of its own. The figures themselves are the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.answers.rows import of_task
from eval.quantizations.speed import measure_speed
from observer.errors import ObserverError
from observer.prompts import Task
from observer.training.planning.memory import peak_memory
from tests.support.tiny_runs import split_rows


def test_every_figure_is_measured_for_the_rows_there_are_and_memory_is_not_that_of_who_asks(tiny_gguf: Path) -> None:
    ballast = bytearray(1_200_000_000)
    ballast[:: 1 << 12] = b"x" * len(range(0, len(ballast), 1 << 12))  # touch every page
    speed = measure_speed(tiny_gguf, of_task(split_rows(2), Task.EXTRACT), n_threads=1)
    assert peak_memory("cpu") > len(ballast) > speed.peak_bytes
    assert min(speed.load_s, speed.prefill_tokens_per_s, speed.decode_tokens_per_s) > 0
    assert speed.ttft_ms and speed.extract_examples_per_s and speed.grade_examples_per_s is None


def test_a_file_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ObserverError, match=r"^\S*broken\.gguf: not a GGUF file[^\n]*$"):
        measure_speed(path, [])
