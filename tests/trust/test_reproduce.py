"""Two runs of one config end with the same losses, bytes and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trust.conftest import Night
from tests.trust.runs_compared import artefacts, differences, n_values
from tests.trust.workplace import Workplace

QUICK = ("training.max_steps=12", "training.eval_steps=6", "evaluation.limit=8")
"""Few steps, few rows evaluated; every stage runs all the same."""


def counted(found: dict[str, Any]) -> dict[str, int]:
    """Of what was compared."""
    return {
        "files": len(found),
        "steps": sum("loss" in row for row in found["metrics.jsonl"]),
        "GGUF files": sum(name.endswith(".gguf") for name in found),
        "Modelfiles": sum("Modelfile" in name for name in found),
        "scores": sum(n_values(found[name]) for name in found if Path(name).match("reports/evaluation-*.json")),
    }


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_runs_of_one_config_are_the_same(tmp_path: Path, night: Night) -> None:
    overrides = QUICK if night.scale < 1 else ()
    workplace = Workplace(tmp_path, overrides, config=night.run_config)
    workplace.prepare()
    places = [workplace.place(name) for name in ("one", "two")]
    for place in places:
        place.run_to_the_end()
    one, two = (artefacts(place.paths.root, place.cache) for place in places)
    night.record(config=night.run_config, overrides=" ".join(overrides) or "none", **counted(one))
    night.record(**{name: content for name, content in one.items() if name.endswith(".gguf")})
    assert differences(one, two) == []
