"""A forest is exact: loss and every LoRA gradient are those of the rows one by one, padded, through stock attention."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from observer.training.batching.attention import FOREST_ATTENTION
from observer.training.batching.forest import SHORTEST_SHARED_PREFIX, Batch, Piece, Row, collate, move_together, pad
from observer.training.batching.loss import (
    completion_nll,
    hidden_states,
    layout_line,
    sharing_obstacle,
    sum_nll_by_task,
)
from observer.training.device import choose_runtime, prepare_backend
from observer.training.model import attach_lora, compile_blocks, load_base
from observer.training.rows import IGNORED, TokenRow
from tests.support.tiny_runs import tiny_config

if TYPE_CHECKING:
    from peft import PeftModel

MAX_LENGTH = 512
TOLERANCE = 1e-5
"""Relative, of the loss and of each gradient's norm."""

Scores = tuple[float, dict[str, torch.Tensor]]


def load(folder: Path, base: Path, *overrides: str) -> PeftModel:
    """The tiny model with an adapter that does something: B is zero at first."""
    config = tiny_config(folder, base, *overrides)
    runtime = choose_runtime(config)
    prepare_backend(runtime)
    model = attach_lora(load_base(config, runtime, base), config, runtime)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> PeftModel:
    return load(tmp_path_factory.mktemp("layout"), tiny_model)


def tokens(seed: int, length: int) -> list[int]:
    return torch.randint(3, 512, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


GRADE, EXTRACT = tokens(1, 40), tokens(2, 70)


def row(instruction: list[int], seed: int, prompt: int, completion: int, task: str = "grade") -> TokenRow:
    """A row whose own prompt and completion have so many tokens."""
    return TokenRow(instruction + tokens(seed, prompt + completion), len(instruction) + prompt, task)


CASES = {
    "both tasks mixed": [row(GRADE, 10, 9, 2), row(EXTRACT, 11, 12, 30, "extract"), row(GRADE, 12, 20, 2),
                         row(EXTRACT, 13, 40, 8, "extract"), row(GRADE, 14, 9, 2)],
    "ragged rows": [row(GRADE, 20 + n, 1 + 7 * n, 1 + 11 * (n % 4)) for n in range(8)],
    "equally long rows": [row(GRADE, 30 + n, 12, 5) for n in range(4)],
    "one row": [row(GRADE, 40, 10, 4)],
    "one row of each task": [row(GRADE, 41, 10, 4), row(EXTRACT, 42, 10, 20, "extract")],
    "no common prefix": [row([], 50 + n, 20 + n, 3 + n) for n in range(4)],
    "a prefix too short to share": [row(GRADE[: SHORTEST_SHARED_PREFIX - 2], 60 + n, 9, 5) for n in range(3)],
    "the same row twice": [row(GRADE, 70, 10, 6), row(GRADE, 70, 10, 6), row(GRADE, 71, 10, 6)],
    "nothing but the instruction for a prompt": [row(GRADE, 75, 0, 6), row(GRADE, 76, 0, 9)],
    "exchanges with both tasks": [
        TokenRow(GRADE + tokens(120 + n // 2, 18 + 5 * (n // 2)) + tokens(130 + n, 6 + 9 * (n % 2)),
                 len(GRADE) + 18 + 5 * (n // 2) + 4, ("grade", "extract")[n % 2]) for n in range(6)],
    "an exchange with three rows beside rows alone": [
        *(row(GRADE + tokens(140, 30), 141 + n, 5, 3 + n) for n in range(3)),
        *(row(GRADE, 150 + n, 25 + n, 4) for n in range(3)), row([], 155, 30, 5)],
    "exchanges that begin alike, one the other's beginning": [
        row(GRADE + tokens(160, length), 161 + n, 3, 4) for n, length in enumerate((16, 40, 40, 17))],
    "exchanges whose beginning is too short to share": [
        row(GRADE + tokens(170, SHORTEST_SHARED_PREFIX - 3), 171 + n, 20, 5) for n in range(3)],
    "rows at max length": [row(EXTRACT, 80 + n, MAX_LENGTH - 100, 30, "extract") for n in range(2)],
    "three instructions and a row alone": [
        *(row(tokens(90 + n % 3, 30 + n % 3), 100 + n, 5 + n, 4) for n in range(6)), row([], 110, 50, 9)],
}  # fmt: skip
each_case = pytest.mark.parametrize("rows", CASES.values(), ids=CASES)


def as_dicts(rows: list[TokenRow]) -> list[Row]:
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]


def scores_of(model: PeftModel, nll: torch.Tensor) -> Scores:
    """Token-mean loss and the gradient of every LoRA matrix."""
    model.zero_grad()
    loss = nll.mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == {name for name, p in model.named_parameters() if "lora_" in name}
    return loss.item(), gradients


def plain_nll(model: PeftModel, rows: list[TokenRow]) -> torch.Tensor:
    """Every row with all its tokens, padded, stock attention, full logits: nothing of ours but the model."""
    longest = max(map(len, rows))
    ids = torch.tensor([row.input_ids + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    model.config._attn_implementation = "sdpa"
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")[
        (labels[:, 1:] != IGNORED).flatten()
    ]


def differences(found: Scores, expected: Scores) -> list[float]:
    """Relative, of the loss and of each gradient."""
    gradients = [(found[1][name] - known).norm() / known.norm() for name, known in expected[1].items()]
    return [abs(found[0] / expected[0] - 1), *(difference.item() for difference in gradients)]


@each_case
def test_loss_and_gradients_are_those_of_plain_padded_rows(model: PeftModel, rows: list[TokenRow]) -> None:
    expected = plain_nll(model, rows)
    found = completion_nll(model, collate(as_dicts(rows)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # token by token, in row order
    assert model.config._attn_implementation == FOREST_ATTENTION
    assert max(differences(scores_of(model, found), scores_of(model, plain_nll(model, rows)))) < TOLERANCE


@each_case
def test_filler_changes_neither_loss_nor_gradients(model: PeftModel, rows: list[TokenRow]) -> None:
    multiple = 256
    plain, filled = collate(as_dicts(rows)), collate(as_dicts(rows), multiple)
    n_tokens, n_filled = plain["input_ids"].shape[1], filled["input_ids"].shape[1]
    assert n_filled % multiple == len(filled["forest"].segments.keys) % multiple == 0 < n_filled - n_tokens <= multiple
    expected = completion_nll(model, plain)
    found = completion_nll(model, filled)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert max(differences(scores_of(model, found), scores_of(model, expected))) < TOLERANCE


def test_a_plain_mask_of_ones_over_packed_rows_is_caught(model: PeftModel) -> None:
    """Positions continue, nothing is padded, and still each row must not see its neighbours."""
    rows = CASES["both tasks mixed"] + CASES["exchanges with both tasks"]
    batch, expected = collate(as_dicts(rows)), scores_of(model, plain_nll(model, rows))
    wrong = scores_of(model, nll_through_stock_attention(model, batch, torch.ones_like(batch["input_ids"])))
    assert min(differences(wrong, expected)) > 100 * TOLERANCE
    right = scores_of(model, nll_through_stock_attention(model, batch, dense_mask(batch)))
    assert max(differences(right, expected)) < TOLERANCE


def nll_through_stock_attention(model: PeftModel, batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    model.config._attn_implementation = "sdpa"
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask).logits[0]
    return functional.cross_entropy(logits[batch["scored"]], batch["labels"][0][batch["scored"] + 1], reduction="none")


def span(piece: Piece) -> slice:
    return slice(piece.start, piece.start + piece.length)


def dense_mask(batch: Batch) -> torch.Tensor:
    """What a token sees, (1, 1, tokens, tokens): its row, exchange and instruction, up to itself."""
    sees = torch.zeros(batch["input_ids"].shape[1], batch["input_ids"].shape[1], dtype=torch.bool)
    for tree in batch["forest"].trees:
        sees[tree.prefix, tree.prefix] = True
        for piece in tree.pieces:
            own = span(piece)
            sees[own, tree.prefix] = sees[own, own] = True
            if piece.parent is not None:
                sees[own, span(tree.pieces[piece.parent])] = True
    return sees.tril()[None, None]


def test_small_batches_add_up_to_the_large_one(model: PeftModel) -> None:
    """Gradient accumulation: whatever rows meet in a batch."""
    rows = CASES["both tasks mixed"] + CASES["ragged rows"]
    parts = [rows[:2], rows[2:3], rows[3:9], rows[9:]]
    nll = torch.cat([completion_nll(model, collate(as_dicts(part))) for part in parts])
    whole = completion_nll(model, collate(as_dicts(rows)))
    assert max(differences(scores_of(model, nll), scores_of(model, whole))) < TOLERANCE


def test_evaluation_is_the_same_at_any_batch_size_and_per_task(model: PeftModel) -> None:
    rows = CASES["both tasks mixed"] + CASES["one row"] + CASES["rows at max length"]
    with torch.no_grad():
        expected = {
            task: torch.cat([plain_nll(model, [row]) for row in rows if task in ("all", row.task)]).mean().item()
            for task in ("all", "grade", "extract")
        }
    for batch_size in (1, 3, 100):
        sums = sum_nll_by_task(lambda batch: completion_nll(model, batch), rows, batch_size, model.device)
        means = {task: nats / n_tokens for task, (nats, n_tokens) in sums.items()}
        assert means == pytest.approx(expected, rel=TOLERANCE)


def test_a_batch_without_labels_has_no_loss(model: PeftModel) -> None:
    """A process that has no row left in the last step of an epoch still takes part in it."""
    nll = completion_nll(model, collate([{"input_ids": [5, 6], "labels": [IGNORED, IGNORED]}]))
    assert nll.shape == (0,) and nll.sum().item() == 0


@pytest.fixture(scope="module")
def nf4_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> PeftModel:
    return load(tmp_path_factory.mktemp("nf4"), tiny_model, "model.load_in_4bit=true")


def test_it_is_exact_over_nf4_weights(nf4_model: PeftModel) -> None:
    rows = CASES["both tasks mixed"]
    found = scores_of(nf4_model, completion_nll(nf4_model, collate(as_dicts(rows))))
    assert max(differences(found, scores_of(nf4_model, plain_nll(nf4_model, rows)))) < TOLERANCE


def test_over_nf4_weights_all_else_keeps_the_precision_of_the_run(tmp_path: Path, tiny_model: Path) -> None:
    model = load(tmp_path, tiny_model, "model.load_in_4bit=true", "model.dtype=bfloat16")
    kept = {str(p.dtype) for name, p in model.named_parameters() if "lora_" not in name}
    assert kept == {"torch.bfloat16", "torch.uint8"}  # uint8 holds two weights of 4 bits


def test_over_bfloat16_weights_it_differs_by_rounding_alone(tmp_path: Path, tiny_model: Path) -> None:
    """bfloat16 keeps 8 bits: the two layouts are as far from one another as each is from float32."""
    model, rows = load(tmp_path, tiny_model, "model.dtype=bfloat16"), CASES["both tasks mixed"]
    with torch.autocast("cpu", torch.bfloat16):
        found = scores_of(model, completion_nll(model, collate(as_dicts(rows))))
        expected = scores_of(model, plain_nll(model, rows).float())
    assert max(differences(found, expected)) < 0.03


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, tiny_model: Path, model: PeftModel) -> None:
    checkpointed, rows = load(tmp_path, tiny_model), CASES["both tasks mixed"]
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed.train()
    assert sharing_obstacle(checkpointed) is None
    found = scores_of(checkpointed, completion_nll(checkpointed, collate(as_dicts(rows))))
    assert max(differences(found, scores_of(model, completion_nll(model, collate(as_dicts(rows)))))) < TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_blocks_change_nothing_at_any_number_of_tokens(
    tmp_path: Path, tiny_model: Path, model: PeftModel
) -> None:
    compiled = load(tmp_path, tiny_model)
    compile_blocks(compiled)
    for name in ("both tasks mixed", "one row"):
        batch = collate(as_dicts(CASES[name]))
        found = scores_of(compiled, completion_nll(compiled, batch))
        assert max(differences(found, scores_of(model, completion_nll(model, batch)))) < TOLERANCE, name


def test_lora_dropout_makes_it_fall_back_to_padded_rows_and_say_so(
    tmp_path: Path, tiny_model: Path, model: PeftModel
) -> None:
    fallen_back, rows = load(tmp_path, tiny_model, "lora.lora_dropout=0.1"), CASES["three instructions and a row alone"]
    line = layout_line(fallen_back)
    assert "padded" in line and "LoRA dropout 0.1" in line and "\n" not in line
    fallen_back.eval()  # without its noise, the padded rows give what the forest does
    found = scores_of(fallen_back, completion_nll(fallen_back, collate(as_dicts(rows))))
    assert fallen_back.config._attn_implementation == "sdpa"
    assert max(differences(found, scores_of(model, completion_nll(model, collate(as_dicts(rows)))))) < TOLERANCE


@pytest.fixture
def other_attention(model: PeftModel) -> Iterator[PeftModel]:
    before = model.config._attn_implementation
    model.config._attn_implementation = "flex_attention"
    yield model
    model.config._attn_implementation = before


def test_attention_that_cannot_be_replaced_is_named(other_attention: PeftModel) -> None:
    assert "flex_attention cannot be replaced" in layout_line(other_attention)


def test_every_token_is_computed_once(model: PeftModel) -> None:
    rows = CASES["both tasks mixed"]
    batch = collate(as_dicts(rows))
    own = sum(len(row) - len(GRADE if row.task == "grade" else EXTRACT) for row in rows)
    assert batch["input_ids"].shape == (1, len(GRADE) + len(EXTRACT) + own)
    assert hidden_states(model, batch).shape[0] == batch["input_ids"].shape[1]


def test_an_exchange_is_computed_once_for_both_its_tasks() -> None:
    rows = CASES["exchanges with both tasks"]
    exchanges = sum(18 + 5 * n for n in range(3))
    batch = collate(as_dicts(rows))
    assert batch["input_ids"].shape[1] == len(GRADE) + exchanges + sum(6 + 9 * (n % 2) for n in range(6))


class Copies(TorchDispatchMode):
    """Counts the copies from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@each_case
def test_a_forest_goes_to_its_device_in_one_copy_and_arrives_whole(rows: list[TokenRow]) -> None:
    """`meta` stands in for a GPU, where each copy would wait for all the work given out before."""
    forest = collate(as_dicts(rows))["forest"]
    with Copies() as copies:
        forest.to("meta")
    holders = [*(group for tree in forest.trees for group in tree.groups), forest.segments]
    moved = move_together(holders, torch.device("cpu"))
    for whole, arrived in zip(holders, moved, strict=True):
        for name, part in vars(whole).items():
            if isinstance(part, torch.Tensor):
                torch.testing.assert_close(getattr(arrived, name), part, rtol=0, atol=0)
    assert copies.n == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 30), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=9
    )
)
def test_unpacking_a_forest_gives_the_rows_back(shapes: list[tuple[int, int, int, int]]) -> None:
    instructions = [[], GRADE, EXTRACT[:20], GRADE + tokens(5, 30), GRADE + tokens(5, 16) + tokens(6, 3)]
    rows = [row(instructions[kind], seed, prompt, completion) for kind, prompt, completion, seed in shapes]
    batch = collate(as_dicts(rows))
    padded = pad(batch)
    lengths = padded.attention_mask.sum(1).tolist()
    unpacked = [ids[:length].tolist() for ids, length in zip(padded.input_ids, lengths, strict=True)]
    assert sorted(unpacked) == sorted(row.input_ids for row in rows)
    targets = batch["labels"][0][batch["scored"] + 1].tolist()
    assert targets == [label for row in rows for label in row.labels if label != IGNORED]
    assert torch.equal(padded.input_ids.flatten()[padded.place], batch["input_ids"][0])
