"""A forest in one call of attention is exact, through CPU kernels in place of CUDA's, and is compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.attention.varlen import _varlen_attn

from observer.training.batching import varlen
from observer.training.batching.attention import call_obstacle, use_forest_attention
from observer.training.batching.forest import Batch, collate
from observer.training.batching.order import RowSampler
from observer.training.model import compile_blocks
from observer.training.rows import TokenRow
from tests.support import varlen_on_cpu
from tests.training.test_forest import (
    CASES,
    TOLERANCE,
    Scores,
    as_dicts,
    differences,
    each_case,
    load,
    row,
    scores_of,
    tokens,
)

if TYPE_CHECKING:
    from peft import PeftModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> PeftModel:
    return load(tmp_path_factory.mktemp("varlen"), tiny_model)


def nll_through(model: PeftModel, batch: Batch, *, in_one_call: bool) -> torch.Tensor:
    """Of the labelled tokens, through the model's own head."""
    use_forest_attention(model.config)
    forest = batch["forest"].segments if in_one_call else batch["forest"]
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], forest=forest,
                   attention_mask=torch.empty(1, 1, 0, 0), use_cache=False).logits[0]  # fmt: skip
    return torch.nn.functional.cross_entropy(
        logits[batch["scored"]], batch["labels"][0][batch["scored"] + 1], reduction="none"
    )


def scores_through(model: PeftModel, batch: Batch, *, in_one_call: bool) -> Scores:
    return scores_of(model, nll_through(model, batch, in_one_call=in_one_call))


@pytest.mark.parametrize("multiple", [None, 256])
@each_case
def test_one_call_gives_the_loss_and_gradients_of_the_groups(
    model: PeftModel, rows: list[TokenRow], multiple: int | None
) -> None:
    found = scores_through(model, collate(as_dicts(rows), multiple), in_one_call=True)
    assert max(differences(found, scores_through(model, collate(as_dicts(rows)), in_one_call=False))) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n_heads", "n_key_heads", "head_dim"), [(4, 2, 64), (16, 8, 128), (9, 3, 64), (4, 4, 32)])
def test_what_is_tried_before_a_training_passes_for_right_kernels(
    dtype: torch.dtype, n_heads: int, n_key_heads: int, head_dim: int
) -> None:
    difference = varlen.try_out(CPU, dtype, n_heads, n_key_heads, head_dim)
    assert difference < (1e-5 if dtype == torch.float32 else varlen.LARGEST_DIFFERENCE)


def aligned_at_the_start(
    query: torch.Tensor, key: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The other reading of a causal mask: a query sees as many keys as its own place from the start."""
    scores = query.transpose(0, 1) @ key.permute(1, 2, 0) * (scale or query.shape[-1] ** -0.5)
    scores = scores.masked_fill(~torch.ones_like(scores[0], dtype=torch.bool).tril(), float("-inf"))
    return scores.softmax(-1), scores.logsumexp(-1)


def test_kernels_that_align_the_mask_at_the_start_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_on_cpu, "_weights", aligned_at_the_start)
    assert varlen.try_out(CPU, torch.bfloat16, 4, 2, 64) > 10 * varlen.LARGEST_DIFFERENCE


def fail(*_: object) -> None:
    raise RuntimeError("no kernel image is available")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU passes for a GPU that has the kernels."""
    monkeypatch.setattr(varlen, "KERNELS_ON", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    varlen.obstacle.cache_clear()
    yield
    varlen.obstacle.cache_clear()


HEADS = (CPU, torch.float16, 4, 2, 64)


@pytest.mark.usefixtures("kernels")
def test_right_kernels_are_used() -> None:
    assert varlen.obstacle(*HEADS) is None


@pytest.mark.usefixtures("kernels")
def test_kernels_that_are_wrong_or_do_not_run_are_given_up_for_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(varlen_on_cpu, "_weights", aligned_at_the_start)
        assert "differs by" in (varlen.obstacle(*HEADS) or "")
    varlen.obstacle.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(varlen_on_cpu, "_gradients", fail)
        assert varlen.obstacle(*HEADS) == "variable-length attention does not run here: RuntimeError"
    varlen.obstacle.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert varlen.obstacle(*HEADS) == "the GPU is older than Ampere"


def test_a_cpu_and_float32_go_group_by_group(model: PeftModel) -> None:
    assert call_obstacle(model) == "the device is no GPU"
    assert varlen.obstacle(torch.device("cuda"), torch.float32, 4, 2, 64) == "there are no kernels for float32"


def test_the_call_keeps_the_promises_of_an_operator() -> None:
    """Schema, fake tensors and gradients, as torch.compile counts on them."""
    batch = collate(as_dicts(CASES["exchanges with both tasks"]))
    segments = batch["forest"].segments
    shapes = (batch["input_ids"].shape[1], 4), (len(segments.keys), 2), (len(segments.keys), 2)
    states = [torch.randn(*shape, 32, requires_grad=True) for shape in shapes]
    torch.library.opcheck(
        _varlen_attn,
        (*states, segments.query_ends, segments.key_ends, segments.longest_query, segments.longest_key, True, None,
         [-1, 0], True),
    )  # fmt: skip


def batches_of_a_training() -> Iterator[Batch]:
    """Twenty, no two alike."""
    rows = [row(tokens(n % 2, 40 + 20 * (n % 2)) + tokens(1_000 + n // 2, 10 + n % 37), n, 5 + n % 11, 2 + n % 29)
            for n in range(160)]  # fmt: skip
    order = list(RowSampler(rows, batch_size=8, seed=1))
    for start in range(0, len(order), 8):
        yield collate(as_dicts([rows[number] for number in order[start : start + 8]]))


class Graphs:
    """A backend of torch.compile that counts what it is given and runs it as it is."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> object:
        self.n += 1
        return graph.forward


@pytest.mark.parametrize("in_one_call", [True, False])
def test_compiled_blocks_take_twenty_batches_of_a_training_without_compiling_anew(
    tmp_path: Path, tiny_model: Path, model: PeftModel, in_one_call: bool
) -> None:
    """One call is compiled with its block; the groups' calls stand between parts of it."""
    compiled, graphs = load(tmp_path, tiny_model), Graphs()
    compile_blocks(compiled, backend=graphs)  # type: ignore[arg-type]
    n_graphs = 0
    for number, batch in enumerate(batches_of_a_training()):
        found = scores_through(compiled, batch, in_one_call=in_one_call)
        if number == 0:
            assert max(differences(found, scores_through(model, batch, in_one_call=in_one_call))) < TOLERANCE
            n_graphs = graphs.n
    assert graphs.n == n_graphs and (n_graphs == model.config.num_hidden_layers) == in_one_call


def test_blocks_compiled_as_unsloth_compiles_them_are_compiled_twice_at_most(tmp_path: Path, tiny_model: Path) -> None:
    """It leaves what is dynamic to torch: a size is, once it was seen to change."""
    compiled, graphs = load(tmp_path, tiny_model), Graphs()
    blocks: Any = compiled.get_base_model().model.layers  # type: ignore[union-attr]
    for block in blocks:
        block.compile(dynamic=None, backend=graphs)
    for batch in batches_of_a_training():
        scores_through(compiled, batch, in_one_call=True)
    assert graphs.n <= 2 * len(blocks)
