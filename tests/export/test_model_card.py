"""The model card says what the run recorded, and nothing that it did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from observer.config import Config
from observer.export.model_card import render_model_card, write_model_card
from observer.files import write_json, write_jsonl
from observer.paths import RunPaths
from observer.runs.finished_run import Run
from observer.runs.manifest import Manifest
from tests.support.tiny_runs import split_rows


def make_run(folder: Path, base: str = "Qwen/Qwen3-0.6B") -> Run:
    config = Config.model_validate(
        {
            "run": {"name": "run", "output_dir": folder},
            "model": {"base": base},
            "data": {"train": folder / "train.jsonl", "val": folder / "val.jsonl"},
        }
    )
    return Run(config, RunPaths(folder / "run", "run"))


def evaluation(name: str, size_bytes: int | None, accuracy: float, *, split: str = "data/val.jsonl") -> dict[str, Any]:
    return {
        "model": {"file_type": name, "size_bytes": size_bytes, "is_stand_in": False},
        "split": split,
        "grading": {"n": 340, "accuracy": accuracy, "macro_f1": 0.875},
        "baselines": {},
        "extraction": None,
    }


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_a_run_that_recorded_nothing_has_a_card_without_figures(tmp_path: Path) -> None:
    card = render_model_card(make_run(tmp_path))
    assert "Not evaluated: no report was found" in card
    assert "No GGUF file is here yet." in card
    assert "loss" not in card and "steps" not in card and "rows (" not in card


def test_the_front_matter_names_base_and_licence(tmp_path: Path) -> None:
    assert front_matter(render_model_card(make_run(tmp_path))) == {
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_relation": "finetune",
        "language": ["en"],
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "ollama", "lora", "memory", "information-extraction"],
    }


def test_a_folder_as_base_is_no_hub_id_and_has_a_licence_of_its_own(tmp_path: Path) -> None:
    card = render_model_card(make_run(tmp_path, base=str(tmp_path)))
    assert "base_model" not in front_matter(card)
    assert front_matter(card)["license"] == "other"
    assert f"That of the base, `{tmp_path}`" in card


def test_the_nano_stand_in_is_said_to_be_one(tmp_path: Path) -> None:
    card = render_model_card(make_run(tmp_path, base="data/nano-base"))
    assert "> The base is the nano stand-in" in card
    assert "base_model" not in front_matter(card)
    assert "stand-in" not in render_model_card(make_run(tmp_path))


def test_scores_are_those_of_the_reports_split_by_split(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_json(run.paths.reports / "evaluation-q8_0.json", evaluation("q8_0", 2000, 0.91234))
    write_json(run.paths.reports / "evaluation-f16.json", evaluation("f16", 4000, 0.95))
    write_json(run.paths.reports / "evaluation-ollama-m.json", evaluation("ollama-m", None, 0.9))  # a server's
    challenge = evaluation("f16", 4000, 0.5, split="challenge")
    write_json(run.paths.reports / "challenge-evaluation-f16.json", challenge)
    (run.paths.reports / "evaluation-broken.json").write_text("{")
    card = render_model_card(run)
    assert "On `data/val.jsonl`:\n\n| type | rows | accuracy | macro-F1 |" in card
    assert "| f16 | 340 / 0 | 0.950 | 0.875 |\n| q8_0 | 340 / 0 | 0.912 | 0.875 |\n| ollama-m | 340 / 0 | 0.900" in card
    assert "On `challenge`:" in card and "| f16 | 340 / 0 | 0.500 | 0.875 |" in card
    assert "triple F1" not in card, "what no report has is no column"


def test_an_adapter_that_was_trained_further_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "trained further" not in render_model_card(run)
    model = run.config.model.model_copy(update={"adapter": Path("models/smollm2-observer")})
    further = Run(run.config.model_copy(update={"model": model}), run.paths)
    assert "- trained further from the adapter `models/smollm2-observer`" in render_model_card(further)


def test_files_training_and_data_are_as_they_lie_there(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.paths.gguf("f16").parent.mkdir(parents=True)
    run.paths.gguf("f16").write_bytes(bytes(3_200_000))
    run.paths.gguf("q4_k_m").write_bytes(bytes(1_100_000))
    write_jsonl(run.config.data.train, split_rows(6))
    out = run.paths.root / "done"
    out.write_text("done")
    notes = {"steps": 1330, "rows_a_step": 32, "final": {"eval_loss": 0.11984}}
    Manifest(run.paths.manifest).run("train", {}, [out], lambda: notes)
    card = render_model_card(run)
    assert "| `run-f16.gguf` | f16 | 3.2 |\n| `run-q4_k_m.gguf` | q4_k_m | 1.1 |" in card
    assert " 32 rows a step" in card, "of all processes"
    assert "- 1,330 steps\n- loss on the validation rows at the end: 0.1198" in card
    assert "6 rows (3 to grade, 3 to extract from)" in card


def test_the_rows_named_are_those_of_the_config_and_not_others_left_there(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in (run.paths.data.train, run.paths.data.val):
        write_jsonl(path, split_rows(2))
    card = render_model_card(run)
    assert f"- train: `{run.config.data.train}`\n- validation: `{run.config.data.val}`" in card
    own = Run(Config.model_validate({"data": {"utility": "raw.jsonl"}}), run.paths)
    assert f"`{run.paths.data.train}`, 2 rows" in render_model_card(own)
    assert f"`{run.paths.data.val}`, 2 rows" in render_model_card(own)


@pytest.mark.parametrize("base", ["Qwen/Qwen3-0.6B", "data/nano-base"])
def test_the_adapter_is_offered_only_over_a_base_of_ollama_s_library(tmp_path: Path, base: str) -> None:
    assert ("Modelfile-adapter" in render_model_card(make_run(tmp_path, base))) == base.startswith("Qwen/")


def test_it_lies_beside_the_gguf_files(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_model_card(run)
    path = run.paths.model_card
    assert path == run.paths.gguf("f16").parent / "README.md"
    assert path.read_text() == render_model_card(run)
    assert json.dumps(front_matter(path.read_text()))
