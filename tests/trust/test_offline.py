"""The pipeline ends with its reports and looks up no address while there is no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trust.conftest import Night
from tests.trust.offline import alone_command, run_offline

SHORT = ("training.max_steps=8", "training.eval_steps=4", "evaluation.limit=4", "export.quantizations=[f16,q4_k_m]")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_pipeline_needs_no_network(night: Night) -> None:
    alone = alone_command()
    assert alone is not None, "no network can be taken away here: `unshare --net` is not there or not allowed"
    found = run_offline(Path(night.run_config), SHORT, alone)
    night.record(reached=len(found.reached), reports=found.n_reports, an_address_outside=found.blocked)
    assert (found.code, found.reached) == (0, []), found.output[-2000:]
    assert found.passed
