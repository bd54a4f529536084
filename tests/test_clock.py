"""A clock that jumps by a day, either way, changes nothing but the times that are written down."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from observer.training.checkpoints import RotationCallback
from observer.training.token_cache import FILES_KEPT, look_up
from tests.support.tiny_runs import tiny_config
from tests.test_secrets import calls

DAY_S = 86_400.0


def test_no_duration_is_measured_by_the_clock_on_the_wall() -> None:
    on_the_wall = {"time.time", "time.time_ns", "datetime.utcnow", "os.path.getmtime"}
    asked = [call.place for call in calls() if call.name in on_the_wall]
    assert [place for place in asked if place.startswith(("observer/", "train_sft.py"))] == []


def test_the_last_checkpoints_are_kept_though_the_clock_was_set_back(tmp_path: Path) -> None:
    now = time.time()
    for number, step in enumerate((3, 6, 9, 12)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        os.utime(folder, (now - number * DAY_S, now - number * DAY_S))
    state = TrainerState(best_model_checkpoint=str(tmp_path / "checkpoint-3"), is_world_process_zero=True)
    RotationCallback(2).on_save(TrainingArguments(str(tmp_path)), state, TrainerControl())
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-12"}


def test_what_was_just_tokenized_is_kept_though_older_files_seem_newer(tmp_path: Path) -> None:
    for number in range(FILES_KEPT):
        look_up([str(number)], "tokenizer", lambda texts: [[1]], tmp_path)
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() + DAY_S, time.time() + DAY_S))
    asked: list[list[str]] = []
    for _ in range(2):
        look_up(["new"], "tokenizer", lambda texts: asked.append(texts) or [[2]], tmp_path)
    assert asked == [["new"]] and len(list(tmp_path.iterdir())) == FILES_KEPT


@pytest.mark.slow
def test_a_training_is_the_same_while_the_clock_jumps(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training.test_training import trained

    steps = ["training.num_train_epochs=2", "training.eval_steps=2", "training.save_total_limit=1"]
    (tmp_path / "plain").mkdir()
    (tmp_path / "jumping").mkdir()
    expected = trained(tiny_config(tmp_path / "plain", tiny_model, *steps))
    clock, jumps = time.time, itertools.cycle([0.0, -DAY_S, DAY_S])
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    config = tiny_config(tmp_path / "jumping", tiny_model, *steps)
    assert trained(config) == expected
    assert {path.name for path in config.paths.checkpoints.glob("checkpoint-*")} == {"checkpoint-6"}
    lines = [line for line in config.paths.log.read_text().splitlines() if " left" in line]
    assert lines and not any("-" in line.rpartition("GB")[2] for line in lines), "no time left is below 0"
