"""The benchmark of quantizations: its rule, its files, its rounds, and the whole of it on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from eval.benchmark_quantizations import main
from eval.metrics.significance import Interval
from eval.metrics.spread import Spread
from eval.quantizations.choice import Choice, Verdict, judge, least_families, recommend, rows_needed_ratio, rule_text
from eval.quantizations.files import ImatrixMode, given_files, wanted_files
from eval.quantizations.page import to_markdown, write_reports
from eval.quantizations.report import Benchmark, summarize_speed, to_json
from eval.reports import comparison
from observer.errors import ObserverError
from observer.export.export import File
from observer.export.gguf.write import write_gguf
from observer.files import write_jsonl
from observer.paths import NANO_BASE
from tests.support.benchmark_samples import sample_speed
from tests.support.tiny_runs import raw_rows, write_tiny_run

MANY = 500


def outcome(difference: float, low: float, *, p: float = 1.0, measure: str = "accuracy") -> comparison.Test:
    verdict = "worse" if p < 0.05 else "no evidence"
    interval = Interval(low, difference + 0.01)
    return comparison.Test(measure, "paired_bootstrap", 0.9, 0.9 + difference, difference, interval, p, p, verdict)


@pytest.mark.parametrize(
    ("tests", "n_families", "verdict"),
    [
        ([outcome(0.0, -0.02), outcome(0.0, -0.03, measure="triple_f1_temporal")], MANY, Verdict.NO_HARM),
        ([outcome(0.0, -0.02), outcome(0.0, -0.031, measure="triple_f1_temporal")], MANY, Verdict.UNCLEAR),
        ([outcome(-0.02, -0.029, p=0.01)], MANY, Verdict.WORSE),  # little, but shown
        ([outcome(0.0, 0.0)], 121, Verdict.UNCLEAR),  # nothing differs, on too few rows to tell
        ([outcome(0.0, 0.0)], 122, Verdict.NO_HARM),
        (
            [outcome(0.0, 0.0), outcome(-0.5, -0.6, p=0.0, measure="entity_f1")],
            MANY,
            Verdict.NO_HARM,
        ),  # not in the rule
    ],
)
def test_no_evidence_of_harm_is_told_apart_from_evidence_of_no_harm(
    tests: list[comparison.Test], n_families: int, verdict: Verdict
) -> None:
    assert judge(tests, n_families) == verdict


def test_the_fewest_rows_that_can_exclude_a_loss_are_those_that_would_show_it() -> None:
    assert least_families(0.03) == 122
    assert 0.97**122 <= 0.025 < 0.97**121
    assert least_families(0.5) == math.ceil(5.32)
    assert "122 families" in rule_text(0.03)


def test_rows_to_settle_a_question_follow_from_the_width_of_its_interval() -> None:
    assert rows_needed_ratio(outcome(0.0, -0.06), 0.03) == pytest.approx(4.0)  # half the width, four times the rows
    assert rows_needed_ratio(outcome(-0.01, -0.05), 0.03) == pytest.approx(4.0)
    assert rows_needed_ratio(outcome(-0.04, -0.05), 0.03) is None


def test_the_smallest_file_without_harm_is_recommended_and_the_smaller_ones_are_explained() -> None:
    both = [outcome(0.0, -0.01), outcome(-0.002, -0.02, measure="triple_f1_temporal")]
    choices = [
        Choice("f16", 7000, Verdict.REFERENCE, []),
        Choice("q8_0", 4000, Verdict.NO_HARM, both, 0.001),
        Choice("q4_k_m", 2400, Verdict.NO_HARM, both, 0.02),
        Choice("iq4_xs", 2200, Verdict.UNCLEAR, [outcome(0.0, -0.06)], 0.03),
        Choice("q2_k", 1600, Verdict.WORSE, [outcome(-0.2, -0.3, p=0.0001)], 0.5),
    ]
    found = recommend(choices, MANY)
    assert found.name == "q4_k_m" and "34 % of f16" in found.sentence
    assert [line.partition(" ")[0] for line in found.smaller] == ["iq4_xs", "q2_k"]
    assert "may lose up to 6.0 points" in found.smaller[0] and "4.0 times the rows" in found.smaller[0]
    assert "by 20.0 points (p <0.001)" in found.smaller[1]
    assert found.reasons[-1].startswith("4 files were tried")


def test_of_files_of_one_size_the_nearest_to_the_reference_wins() -> None:
    same = [outcome(0.0, -0.01)]
    choices = [
        Choice("f16", 7000, Verdict.REFERENCE, []),
        Choice("q4_k_m", 2400, Verdict.NO_HARM, same, 0.02),
        Choice("q4_k_m-imatrix", 2410, Verdict.NO_HARM, same, 0.01),
    ]
    found = recommend(choices, MANY)
    assert found.name == "q4_k_m-imatrix" and "q4_k_m passed too at the same size" in found.reasons[0]


def test_few_rows_recommend_the_reference_and_say_why(few_rows: Benchmark) -> None:
    assert few_rows.recommended.name == "f16" and [file.verdict for file in few_rows.files[1:]] == [Verdict.UNCLEAR]
    assert any("30 unlike rows" in reason and "122" in reason for reason in few_rows.recommendation.reasons)


def test_a_file_that_answers_worse_is_found_out_and_an_equal_one_is_not(benchmark: Benchmark) -> None:
    verdicts = {file.name: file.verdict for file in benchmark.files}
    assert verdicts["f16"] == Verdict.REFERENCE and verdicts["q8_0"] == Verdict.NO_HARM
    assert verdicts["q2_k"] == Verdict.WORSE and verdicts["iq2_xs"] == Verdict.UNCLEAR
    assert benchmark.recommended.name == "q4_k_m-imatrix"


def test_the_reports_hold_all_files_and_say_that_the_model_is_a_stand_in(benchmark: Benchmark, tmp_path: Path) -> None:
    paths = write_reports(benchmark, tmp_path / "out" / "quantizations-sample")
    assert [path.suffix for path in paths if path.stat().st_size] == [".html", ".json", ".md", ".png"]
    value = json.loads(paths[1].read_text(encoding="utf-8"))
    assert value["recommendation"]["name"] == "q4_k_m-imatrix"
    assert [file["name"] for file in value["files"]] == [file.name for file in benchmark.files]
    assert value == json.loads(json.dumps(to_json(benchmark)))
    text = to_markdown(benchmark, "picture.png")
    assert text.index("**Ship q4_k") < text.index("stand-in") < text.index("| q2_k") < text.index("## Hard cases")
    assert "(picture.png)" in text


def test_ratios_of_speed_pair_the_rounds() -> None:
    reference = [sample_speed(1.0), sample_speed(0.25)]  # the machine slowed down, for both alike
    found = summarize_speed([sample_speed(2.0), sample_speed(0.5)], reference)
    assert found and found.ratios["decode_tokens_per_s"] == Spread(2.0, 2.0, 2.0)
    assert found.figures["decode_tokens_per_s"] == Spread(45.0, 112.5, 180.0)
    assert summarize_speed([], []) is None


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("both", ["f16", "q8_0", "q4_k_m", "q4_k_m-imatrix", "iq2_xs-imatrix"]),
        ("auto", ["f16", "q8_0", "q4_k_m-imatrix", "iq2_xs-imatrix"]),
    ],
)
def test_types_below_5_bits_are_made_with_and_without_a_matrix_where_llama_cpp_can(
    mode: ImatrixMode, names: list[str]
) -> None:
    assert [want.name for want in wanted_files(["q8_0", "f16", "q4_k_m", "iq2_xs"], mode)] == names


def test_types_that_cannot_be_made_are_all_named() -> None:
    assert wanted_files(["q4_k_m"], "without") == [File("f16", "f16"), File("q4_k_m", "q4_k_m")]
    with pytest.raises(ObserverError, match=r"iq2_xs' needs an importance matrix[\s\S]*did you mean 'q4_k_m'"):
        wanted_files(["iq2_xs", "q4_km"], "without")


def test_files_of_others_are_checked_before_anything_is_measured(tmp_path: Path) -> None:
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    paths[0].write_bytes(b"no GGUF")
    with pytest.raises(ObserverError, match=r"a\.gguf[\s\S]*b\.gguf"):
        given_files(paths)


def test_files_of_one_name_are_told_apart(tiny_model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / folder / "m.gguf" for folder in "abc"] + [tmp_path / "m-2.gguf"]
    write_gguf(tiny_model, paths[0], name="m")
    for path in paths[1:]:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(paths[0], path)
    assert [file.name for file in given_files(paths, ["m"])] == ["m-2", "m-3", "m-4", "m-2-2"]


def test_the_command_line_wants_something_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "--model" in capsys.readouterr().err
    with pytest.raises(ObserverError, match="no run"):
        main([str(tmp_path)])


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_model: Path) -> Path:
    """A finished run as the benchmark reads it: config, merged model, f16; and grading rows to measure on."""
    config = write_tiny_run(tmp_path, tiny_model)
    run = tmp_path / "outputs" / "tiny"
    run.mkdir(parents=True)
    shutil.copy(config, run / "config.yaml")
    shutil.copytree(tiny_model, run / "merged")
    write_gguf(run / "merged", run / "gguf" / "tiny-f16.gguf", "f16", name="tiny")
    write_jsonl(tmp_path / "graded.jsonl", raw_rows(8)[1::2])
    return run


@pytest.mark.slow
def test_a_run_is_built_measured_and_reported_once(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny_run.parent.parent / "graded.jsonl"
    other = write_gguf(NANO_BASE, tiny_run / "other-nano.gguf", "f16", name="nano")
    command = [str(tiny_run), "--types", "q8_0,q2_k", "--split", str(rows), "--speed-rounds", "1", "--threads", "1"]
    command += ["--model", str(other)]
    assert main(command) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(last["verdicts"]) == ["f16", "q8_0", "q2_k", "q2_k-imatrix", "other-nano"]
    assert last["recommended"] == "f16"  # four rows recommend nothing smaller
    page = Path(last["report"])
    text = page.read_text(encoding="utf-8")
    assert page == next((tiny_run / "reports").glob("*-graded-quantizations-tiny.html"))
    assert "its vocabulary" in text  # whose divergence cannot be told
    assert all(page.with_suffix(suffix).exists() for suffix in (".json", ".md", ".png"))
    records = {path: path.stat().st_mtime_ns for path in (tiny_run / "benchmark").rglob("*") if path.is_file()}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tiny_run / "benchmark").rglob("*") if path.is_file()} == records
