"""A training through Unsloth's code for CUDA, its kernels interpreted on the CPU: from loading to a merged model.

In 16 bits alone: for 4-bit weights Unsloth asks for bitsandbytes' library for CUDA, and for a GPU's device and stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from observer.paths import PROJECT_ROOT
from tests.conftest import make_tiny_model

MISSING = [name for name in ("unsloth", "triton") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} here; `make test-unsloth` brings it"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
]
N_LAYERS = 2


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `unsloth_on_cpu` saw, in a process of its own: unsloth patches what it finds."""
    folder = tmp_path_factory.mktemp("unsloth")
    base = make_tiny_model(
        folder / "base", hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, num_hidden_layers=N_LAYERS,
    )  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.support.unsloth_on_cpu", str(base), str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_forest_goes_through_its_forward_in_one_call_of_attention(seen: dict[str, Any]) -> None:
    assert seen["layout"].startswith(
        "batches: each instruction once, rows packed without padding, attention in one call"
    )
    assert "from padded rows in unsloth's forward" in seen["layout"]


def test_it_trains_evaluates_saves_and_merges(seen: dict[str, Any]) -> None:
    assert seen["steps"] == 1
    assert {"loss", "eval_loss", "eval_grade_loss"} <= seen["losses"].keys()
    assert all(4 < loss < 9 for loss in seen["losses"].values()), "512 tokens, nothing learnt: near 6.2"
    assert seen["n_merged"] == 7 * N_LAYERS


def test_loss_and_gradients_of_a_forest_are_those_of_padded_rows(seen: dict[str, Any]) -> None:
    """In float16; the forest is longer than the longest row that Unsloth was told of."""
    assert seen["nll"] < 0.002 and seen["gradients"] < 0.01
    assert seen["n_gradients"] == 2 * 7 * N_LAYERS


def test_rows_are_padded_where_the_attention_in_one_call_has_no_backward(seen: dict[str, Any]) -> None:
    """What the forest is compared with, above, came about so."""
    assert seen["layout_without_backward"] == (
        "batches: rows of like length, padded, each with its instruction "
        "(variable-length attention does not run here: RuntimeError)"
    )


def test_its_blocks_stay_compiled(seen: dict[str, Any]) -> None:
    assert seen["blocks_compiled_over_a_forest"] == N_LAYERS


def test_what_it_would_change_by_itself_is_as_we_want_it(seen: dict[str, Any]) -> None:
    """The embedding is our head as well; offloading activations wants reentrant checkpoints."""
    assert seen["offload_embedding"] is False and seen["checkpointing"] == {"use_reentrant": True}
