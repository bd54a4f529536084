"""Extraction with drafts beside one token a step: what the comparison prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks.drafting import main


def test_both_ways_are_told_with_the_share_of_drafts_accepted(
    nano_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rows", "3", "--n-seq", "2", "--rounds", "2", "--max-new-tokens", "40", "--threads", "1"]
    assert main([str(nano_gguf), *options]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["rows"], len(found["rounds"])) == (3, 2)
    for told in found["rounds"]:
        assert 0 < told["accepted"] < 1 and told["drafted"] > 0 and told["equal"] == 3
        assert min(told["plain_s"], told["drafting_s"]) > 0
        assert 1 < told["tokens_a_step"] < 13
