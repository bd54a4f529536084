"""How far two importance matrices are apart, on sums whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest

from eval.benchmarks.imatrix_agreement import N_CHUNKS, N_CTX, agreement, calibration_text
from observer.errors import ObserverError
from observer.export.quantize.imatrix_file import Imatrix
from observer.paths import NANO_BASE, PROJECT_ROOT


def of(values: list[float], count: int = 2) -> Imatrix:
    return Imatrix({"blk.0.attn_q.weight": np.array(values, np.float32)}, {"blk.0.attn_q.weight": count}, 1)


def test_distances_are_relative_to_the_tool_s() -> None:
    found = agreement(of([6, 8.8]), of([6, 8]))  # means 3, 4.4 beside 3, 4: |0.4| / |(3, 4)| = 0.08
    assert found.largest_distance == pytest.approx(0.08)
    assert found.largest_column_error == pytest.approx(0.1)
    assert found.counts_equal and found.n_layers == 1
    assert not agreement(of([6, 8], 4), of([6, 8])).counts_equal


def test_other_layers_are_told() -> None:
    with pytest.raises(ObserverError, match="other layers"):
        agreement(of([1]), Imatrix({"x": np.ones(1, np.float32)}, {"x": 1}, 1))


def test_chunks_are_the_text_s_first_tokens() -> None:
    _, chunks = calibration_text(PROJECT_ROOT / NANO_BASE)
    assert [len(chunk) for chunk in chunks] == [N_CTX] * N_CHUNKS
