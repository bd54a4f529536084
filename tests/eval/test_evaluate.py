"""Evaluation end to end on a tiny model and a few rows, and what bad input gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from eval import evaluate
from eval.answers.answering import Answers, answer_rows
from eval.answers.origin import STAND_IN_NOTE, ModelInfo, split_prefix
from eval.answers.rows import take
from eval.reports.evaluation_report import Report, report_path, summary_table
from eval.reports.scoring import score
from observer.config import Config
from observer.console.run import run_cli
from observer.engine.engine import Engine
from observer.export.gguf.write import write_gguf
from observer.files import write_jsonl
from observer.paths import PROJECT_ROOT, RunPaths
from observer.prompts import training_row
from observer.schema import parse_row

WORKS_AT = {"subject": "User", "predicate": "WORKS_AT", "object": "Acme", "temporal": "ongoing"}
USER = {"name": "User", "type": "Person"}
ACME = {"name": "Acme", "type": "Organization"}
RAW_ROWS: list[dict[str, Any]] = [
    {"user_message": "thanks a lot", "assistant_message": "Sure.", "label": "DISCARD"},
    {"user_message": "i love tea", "assistant_message": "Nice.", "label": "STORE", "slices": ["noise"]},
    {"user_message": "i work at Acme", "assistant_message": "Noted.", "label": "IMPORTANT"},
    {
        "user_message": "i work at Acme",
        "assistant_message": "",
        "entities": [USER, ACME],
        "relationships": [WORKS_AT],
        "slices": ["noise"],
    },
    {"user_message": "what is 2 + 2?", "assistant_message": "4", "entities": [], "relationships": []},
]


def rows() -> list[dict[str, Any]]:
    parsed = [parse_row(value | {"id": f"row-{n}"})[0] for n, value in enumerate(RAW_ROWS)]
    return [training_row(row) for row in parsed if row is not None]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run folder with a merged model and its f16 GGUF."""
    paths = RunPaths(tmp_path_factory.mktemp("outputs") / "tiny", "tiny")
    shutil.copytree(tiny_model, paths.merged)
    write_gguf(tiny_model, paths.gguf("f16"), name="tiny-nano")
    return paths


@pytest.fixture(scope="module")
def answers(run: RunPaths) -> Answers:
    with Engine(run.gguf("f16"), n_threads=1) as engine:
        return answer_rows(engine, rows() + [row | {"family": "f"} for row in rows()])


@pytest.fixture
def split(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", rows())
    return tmp_path / "rows.jsonl"


def evaluate_arguments(run: RunPaths, split: Path, *more: str) -> list[str]:
    model = str(run.gguf("f16"))
    return ["--model", model, "--split", str(split), "--train", str(split), "--threads", "1", *more]


def test_an_evaluation_writes_both_reports_and_prints_one_table(run: RunPaths, split: Path, capsys) -> None:
    assert evaluate.main(evaluate_arguments(run, split)) == 0
    printed = capsys.readouterr()
    table = printed.out.splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["f16", "majority", "tfidf"]
    assert STAND_IN_NOTE in printed.err

    (path,) = run.reports.glob(f"*{split.parent.name}-rows-evaluation-f16.json")
    report = json.loads(path.read_text())
    assert report["grading"]["n"] == 3
    assert report["extraction"]["n"] == report["unconstrained"]["n"] == 2
    assert report["grading"]["n_families"] == 3
    low, high = (report["grading"]["intervals"]["accuracy"][end] for end in ("low", "high"))
    assert 0 <= low <= report["grading"]["accuracy"] <= high <= 1
    assert set(report["slices"]["noise"]["intervals"]) == {"accuracy", "macro_f1", "entity_f1", "triple_f1_temporal"}
    assert report["extraction"]["n_empty"] == 1
    assert report["model"]["is_stand_in"]
    assert set(report["baselines"]) == {"majority", "tfidf"}
    assert set(report["examples_per_s"]) == {"grade", "extract"}
    assert report["slices"]["noise"]["n_grade"] == report["slices"]["noise"]["n_extract"] == 1
    assert report["machine"]["n_threads"] == 1

    markdown = path.with_suffix(".md").read_text()
    for part in (STAND_IN_NOTE, str(split), "eval/evaluate.py", "## Grading", "## Extraction", "triple_f1_temporal"):
        assert part in markdown
    for name in ("quadratic_kappa", "mean_cost", "brier", "ece", "probability of the label"):
        assert name in markdown

    saved = path.with_name(path.name.replace(".json", ".answers.jsonl"))
    assert evaluate.main(["--model", str(saved), "--train", str(split), "--out", str(split.parent)]) == 0
    again = json.loads(next(split.parent.glob("*-evaluation-tiny-f16.json")).read_text())
    assert again.pop("command") != report.pop("command")
    assert again == report, "saved answers are scored again without the model"


def test_the_baselines_learn_from_the_rows_that_the_run_was_trained_on(
    run: RunPaths, split: Path, tmp_path: Path
) -> None:
    own, raw = RunPaths(tmp_path / "own", "tiny"), {"utility": tmp_path / "raw.jsonl"}
    shutil.copytree(run.root, own.root)
    write_jsonl(own.data.train, rows()[:3])
    own.config.write_text(Config.model_validate({"data": {"train": split}}).to_yaml())
    assert evaluate.lessons_of(str(own.root), None).names == (str(split),), "own rows of an earlier run are left there"
    own.config.write_text(Config.model_validate({"data": raw}).to_yaml())
    for model in (str(own.root), str(own.gguf("f16")), f"hf:{own.merged}"):
        assert evaluate.lessons_of(model, None).names == (str(own.data.train),)
        assert evaluate.lessons_of(model, split).names == (str(split),)
    assert evaluate.main(evaluate_arguments(own, split)[:4]) == 0
    (path,) = own.reports.glob("*-rows-evaluation-tiny-f16.json")
    report = json.loads(path.read_text())
    assert report["baseline_files"] == [str(own.data.train)]
    page = path.with_suffix(".md").read_text()
    assert f"The baselines learned from {own.data.train}." in page


def test_rows_of_an_older_form_are_scored_as_they_are_trained_on(run: RunPaths, tmp_path: Path) -> None:
    older = {
        "user_message": "I work at Siemens", "assistant_message": None,
        "entities": [{"name": "user", "type": "Person"}, {"name": "Siemens", "type": "Company"}],
        "relationships": [{"subject": "user", "predicate": "works_at", "object": "Siemens", "temporal": "current"}],
    }  # fmt: skip
    write_jsonl(tmp_path / "older.jsonl", [older])
    assert evaluate.main(evaluate_arguments(run, tmp_path / "older.jsonl")[:4]) == 0


def test_the_table_has_intervals_and_fits_120_columns(answers: Answers) -> None:
    report = score(answers, rows())
    big = replace(report, model=replace(report.model, size_bytes=1_200_000_000, file_type="iq3_xxs"))
    table = summary_table([report, big]).splitlines()
    assert all(len(line) <= 120 for line in table)
    assert all(line.count("[") == 3 for line in table[2:4])
    assert all(line.count("[") == 1 for line in table[4:])  # the baselines only grade


def test_a_report_does_not_depend_on_the_order_of_rows(answers: Answers) -> None:
    turned = replace(
        answers,
        grade_rows=answers.grade_rows[::-1],
        grades=answers.grades[::-1],
        extract_rows=answers.extract_rows[::-1],
        completions=answers.completions[::-1],
        unconstrained={len(answers.extract_rows) - 1 - n: c for n, c in reversed(answers.unconstrained.items())},
    )
    one, other = (rounded(score(part, rows())) for part in (answers, turned))
    assert one == other


def rounded(report: Report) -> dict[str, Any]:
    """What another order of additions may change is left out."""
    return json.loads(json.dumps(asdict(report)), parse_float=lambda text: round(float(text), 9))


def test_the_answers_of_a_finished_model_count_towards_validity(answers: Answers) -> None:
    report = score(answers)
    assert report.extraction is not None
    assert report.n_truncated == round((1 - report.extraction.json_validity) * report.extraction.n)
    assert report.extraction.truncation_rate == report.n_truncated / report.extraction.n


def test_a_run_is_evaluated_by_its_best_file_and_for_the_one_task_of_its_rows(run: RunPaths) -> None:
    report = evaluate.evaluate(run.root, rows()[:3], [], n_threads=1)
    assert report.model.path == str(run.gguf("f16"))
    assert report.grading is not None and report.extraction is None
    assert report.baselines == {}
    assert report.unconstrained is None
    assert "f16" in summary_table([report])


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("outputs/nano/gguf/nano-f16.gguf", "outputs/nano/reports"),
        ("models/third-party.gguf", "models/reports"),
        ("ollama:qwen3:0.6b", "outputs/reports"),
        ("outputs/nano/reports/evaluation-f16.answers.jsonl", "outputs/nano/reports"),
    ],
)
def test_reports_go_beside_what_they_are_about(model: str, folder: str) -> None:
    assert evaluate.default_reports_folder(model) == Path(folder)


@pytest.mark.parametrize(
    ("model", "split", "name"),
    [
        ("outputs/mine/gguf/mine-q8_0.gguf", "val", "evaluation-q8_0"),
        ("outputs/mine/gguf/mine-q8_0.gguf", "data/val.jsonl", "evaluation-q8_0"),
        ("outputs/mine/gguf/mine-q8_0.gguf", "challenge", "challenge-evaluation-q8_0"),
        ("outputs/mine/gguf/mine-q8_0.gguf", "everyday", "everyday-evaluation-q8_0"),
        ("outputs/mine/gguf/mine-q8_0.gguf", "data/everyday.jsonl", "data-everyday-evaluation-q8_0"),
        ("outputs/mine/gguf/mine-q8_0.gguf", "../my rows/val.jsonl", "my-rows-val-evaluation-q8_0"),
        ("outputs/mine/gguf/mine-q8_0.gguf", "outputs/other/data/val.jsonl", "other-data-val-evaluation-q8_0"),
        ("outputs/mine/gguf/mine-q8_0-imatrix.gguf", "val", "evaluation-mine-q8_0-imatrix"),
        ("downloads/other-q8_0.gguf", "val", "evaluation-other-q8_0"),
    ],
)
def test_a_report_is_named_by_what_it_is_about(model: str, split: str, name: str) -> None:
    info = ModelInfo(model, "any", "q8_0", 1, is_stand_in=False)
    assert report_path(info, split, Path("outputs/mine/reports"), "md").name == f"{name}.md"


def test_the_val_of_a_run_is_that_of_its_own_rows(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "mine", "mine")
    write_jsonl(paths.data.val, rows())
    paths.config.write_text(Config.model_validate({"data": {"utility": tmp_path / "raw.jsonl"}}).to_yaml())
    assert split_prefix(str(paths.data.val), paths.reports) == ""
    assert split_prefix("val", paths.reports) == split_prefix("data/val.jsonl", paths.reports) == "data-val-"


def test_a_run_and_its_merged_model_have_the_reports_of_the_run(run: RunPaths) -> None:
    for model in (run.root, run.merged, f"hf:{run.merged}"):
        assert evaluate.default_reports_folder(str(model)) == run.reports


def test_the_merged_model_is_evaluated_through_transformers(run: RunPaths) -> None:
    report = evaluate.evaluate(f"hf:{run.merged}", rows()[:3], [], n_threads=1)
    assert report.grading is not None
    assert report.model.size_bytes == (run.merged / "model.safetensors").stat().st_size


def test_a_limit_takes_rows_of_each_task_evenly() -> None:
    many = [row | {"id": str(n)} for n, row in enumerate(rows()[:1] * 10)]
    assert [row["id"] for row in take(many, 3)] == ["0", "3", "6"]
    assert [row["task"] for row in take(rows(), 1)] == ["grade", "extract"]
    assert take(rows(), 100) == take(rows(), None) == rows()
    assert [row["task"] for row in take(rows()[::-1], None)] == ["grade"] * 3 + ["extract"] * 2


def test_every_model_is_checked_before_the_first_is_run(run: RunPaths, split: Path, tmp_path: Path, capsys) -> None:
    fake, missing = tmp_path / "fake.gguf", tmp_path / "missing.gguf"
    fake.write_text("not a model")
    models = [str(run.gguf("f16")), str(fake), str(missing)]
    arguments = ["--model", *models, "--split", str(split), "--train", str(split), "--out", str(tmp_path / "reports")]
    assert run_cli(lambda: evaluate.main(arguments)) == 1
    error = capsys.readouterr().err
    assert f"{fake}: not a GGUF" in error
    assert f"{missing}: no such file" in error
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("option", [["--split", "challenge"], ["--limit", "3"]])
def test_saved_answers_are_asked_for_no_other_rows(option: list[str], capsys) -> None:
    assert run_cli(lambda: evaluate.main(["--model", "some.val.answers.jsonl", *option])) == 1
    assert "scored on the rows that they answer" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["evaluate", "compare", "benchmark_quantizations"])
def test_a_script_runs_from_any_folder(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "eval" / f"{script}.py"), "--help"]
    assert subprocess.run(command, capture_output=True, cwd=tmp_path, check=False).returncode == 0
