"""Benchmarks of quantizations that several files read: made of answers, without models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from eval.quantizations.report import Benchmark

HOSTILE = "<script>alert(1)</script> <img src=http://x.test/a onerror=alert(2)> \"' {{ 7*7 }} </pre></main>"


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Its rows hold what a page must not take for its own. `iq2_xs` is wrong as often as f16, on other rows."""
    from tests.support.benchmark_samples import sample_benchmark

    files = {
        "f16": (7000, range(10)),
        "q8_0": (4000, range(10)),
        "q4_k_m": (2400, range(11)),
        "q4_k_m-imatrix": (2401, range(10)),
        "q2_k": (1600, range(80)),
        "iq2_xs": (1500, range(10, 20)),
    }
    return sample_benchmark(tmp_path_factory.mktemp("files"), files, said=HOSTILE)


@pytest.fixture(scope="session")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """In which nothing changed."""
    from tests.support.benchmark_samples import sample_benchmark

    return sample_benchmark(tmp_path_factory.mktemp("few"), {"f16": (20, ()), "q8_0": (10, ())}, n_rows=30)
