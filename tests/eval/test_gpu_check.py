"""The GPU check without a GPU: its parts run on the CPU, and without CUDA it ends with one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.benchmarks.gpu_check import check, parts
from observer.console.run import run_cli
from tests.support import varlen_on_cpu  # noqa: F401

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@without_gpu
def test_without_a_gpu_it_ends_with_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(lambda: check.main(["--out", str(tmp_path / "out")])) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: gpu-check: ") and printed.err.count("\n") == 1 and not printed.out
    assert not (tmp_path / "out").exists()


def test_attention_is_compared_in_both_precisions_at_the_heads_of_our_bases() -> None:
    findings = parts.attention("cpu")
    assert len(findings) == 2 * len(parts.SHAPES) and all(finding.is_right for finding in findings)


def test_a_forest_is_compared_with_padded_rows_over_both_kinds_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "N_ROWS", 3)
    findings = {finding.name: finding for finding in parts.forest_transformers("cpu")}
    for weights in ("16 bits", "NF4"):
        assert findings[f"transformers, {weights}, loss"].is_right
        assert findings[f"transformers, {weights}, sum of gradient norms"].is_right


def test_launches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "N_ROWS", 3)
    (finding,) = parts.launches("cpu")
    assert int(finding.figure.replace(",", "")) > 500


@pytest.mark.slow
def test_a_stopped_run_is_compared_with_an_uncut_one() -> None:
    _, losses = parts.resumed("cpu")
    assert losses.is_right, losses


@pytest.mark.slow
def test_a_part_that_fails_is_on_the_page_and_the_others_go_on(tmp_path: Path) -> None:
    """In a process of its own, without our kernels, attention in one call does not run on a CPU."""
    assert check.main(["--device", "cpu", "--parts", "attention,launches", "--out", str(tmp_path)]) == 1
    (page,) = tmp_path.iterdir()
    text = page.read_text(encoding="utf-8")
    assert "## attention: FAILED" in text and "exit code 1: " in text and "## launches: right" in text


def test_a_part_that_takes_too_long_is_ended_and_named() -> None:
    result = check.run_part("launches", "cpu", 0.0)
    assert not result.is_right and result.error == "not done after 0 s"


def test_the_benchmarks_last_line_becomes_findings_and_a_contestant_that_fails_makes_them_wrong() -> None:
    answer = {"report": "page.md", "tokens_per_s": {"ours": 1234.5}, "ratios": {}, "nll_after": {}, "failed": {}}
    assert check.Result("speed", 1.0, check.speed_findings(answer)).is_right
    answer["failed"] = {"trl": "CUDA error"}
    assert not check.Result("speed", 1.0, check.speed_findings(answer)).is_right
