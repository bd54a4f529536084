"""Two runs of one config end with the same losses, bytes and scores, and what differs is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from observer.errors import ObserverError
from tests.support.tiny_runs import write_tiny_run
from tests.trust.compare_runs import compare_runs
from tests.trust.reproduce import main

STEPS = [{"step": 1, "loss": 0.5, "elapsed_s": 1.0}, {"step": 2, "loss": 0.25, "grad_norm": 1.5, "elapsed_s": 2.0}]
REPORT = {"date": "today", "grading": {"macro_f1": 0.5, "confusion": [[1, 2]]}, "examples_per_s": {"grade": 9.0}}


def run_folder(root: Path, steps: list[dict[str, Any]], report: dict[str, Any], files: dict[str, str]) -> Path:
    texts = {
        "metrics.jsonl": "".join(json.dumps(step) + "\n" for step in steps),
        "gguf/tiny-f16.gguf": "weights",
        "gguf/Modelfile-f16": "FROM tiny-f16.gguf",
        "Modelfile": "FROM gguf/tiny-f16.gguf",
        "adapter/adapter_model.safetensors": "adapter",
        "reports/evaluation-f16.json": json.dumps(report),
        "reports/evaluation-f16.answers.jsonl": '{"date": "today"}\n{"label": "STORE"}\n',
        "training.log": str(root),
    }
    for name, text in (texts | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "one", STEPS, REPORT, {})


def test_times_dates_and_logs_may_differ(tmp_path: Path, one: Path) -> None:
    steps = [step | {"elapsed_s": 99.0} for step in STEPS]
    answers = {"reports/evaluation-f16.answers.jsonl": '{"date": "tomorrow"}\n{"label": "STORE"}\n'}
    report = REPORT | {"date": "tomorrow", "examples_per_s": {"grade": 1.0}}
    found = compare_runs(one, run_folder(tmp_path / "two", steps, report, answers))
    assert found.differences == []
    assert (found.counts["steps"], found.counts["GGUF files"], found.counts["Modelfiles"]) == (2, 1, 2)
    assert found.counts["other files"] == 2  # the adapter and the answers


def test_what_differs_is_named_and_of_the_losses_the_first_step(tmp_path: Path, one: Path) -> None:
    steps = [STEPS[0], STEPS[1] | {"loss": 0.26, "grad_norm": 1.6}, {"step": 3, "loss": 0.1}]
    files = {
        "gguf/tiny-f16.gguf": "other weights",
        "gguf/tiny-q8_0.gguf": "more weights",
        "reports/evaluation-f16.answers.jsonl": '{"date": "today"}\n{"label": "DISCARD"}\n',
    }
    report = REPORT | {"grading": {"macro_f1": 0.5, "confusion": [[1, 3]]}}
    assert compare_runs(one, run_folder(tmp_path / "two", steps, report, files)).differences == [
        "metrics.jsonl: step 2: grad_norm, loss",
        "gguf/tiny-f16.gguf: other bytes",
        "gguf/tiny-q8_0.gguf: missing in one",
        "reports/evaluation-f16.answers.jsonl: other bytes",
        "reports/evaluation-f16.json: 1 of 3 scores, first grading.confusion[0][1]",
    ]


def test_a_folder_without_a_training_is_refused(tmp_path: Path, one: Path) -> None:
    with pytest.raises(ObserverError, match=r"no metrics\.jsonl, so no finished run"):
        compare_runs(one, tmp_path / "two")


@pytest.mark.slow
def test_two_runs_of_one_config_are_the_same(tmp_path: Path, tiny_model: Path) -> None:
    config = write_tiny_run(tmp_path, tiny_model)
    short = ["--set", "training.max_steps=4", "--set", "training.eval_steps=2"]
    code = main(["--config", str(config), *short, "--work", str(tmp_path / "runs"), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "reproduce.json").read_text())
    assert (code, found["details"]["differences"]) == (0, [])
    counts = found["details"]["compared"]
    assert counts["steps"] == 4 and counts["GGUF files"] >= 2 and counts["Modelfiles"] >= 3 and counts["scores"] > 0
    assert "losses of 4 steps" in found["summary"] and found["summary"].endswith("are the same.")
