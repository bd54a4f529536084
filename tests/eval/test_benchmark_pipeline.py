"""Reading the stages' times out of the recipe's own lines."""

from __future__ import annotations

from eval.benchmarks.pipeline import stage_seconds


def test_stage_seconds_reads_done_and_skipped_stages_in_order() -> None:
    output = (
        "plan: 2,640 rows: done soon\ntrain: done in 101.5 s\nmerge: done before on the same inputs, skipped\n"
        "gguf q4_k_m: done in 0.4 s\n"
    )
    assert stage_seconds(output) == {"train": 101.5, "merge": None, "gguf q4_k_m": 0.4}
