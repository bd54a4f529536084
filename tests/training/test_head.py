"""The head's loss in chunks is cross entropy: in value, in gradient, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from observer.training.batching import head
from observer.training.batching.head import head_nll


def make_head(n_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a weight for 50 tokens, targets."""
    generator = torch.Generator().manual_seed(n_tokens)
    hidden = torch.randn(n_tokens, 8, generator=generator).to(dtype).requires_grad_()
    weight = (3 * torch.randn(50, 8, generator=generator)).to(dtype)
    return hidden, weight, torch.randint(0, 50, (n_tokens,), generator=generator)


@pytest.mark.parametrize("n_tokens", [0, 1, 6, 7, 13])
@pytest.mark.parametrize("chunk_rows", [1, 6, 100])
def test_it_is_cross_entropy(n_tokens: int, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 4 * 50 * chunk_rows)
    hidden, weight, targets = make_head(n_tokens, torch.float32)
    upstream = torch.linspace(-1, 2, n_tokens)
    expected = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    (expected_gradient,) = torch.autograd.grad(expected, hidden, upstream)
    found = head_nll(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(found, hidden, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_in_16_bits_it_is_as_near_the_truth_as_cross_entropy() -> None:
    hidden, weight, targets = make_head(40, torch.bfloat16)
    plain = functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    (plain_gradient,) = torch.autograd.grad(plain.sum(), hidden)
    (gradient,) = torch.autograd.grad(head_nll(hidden, weight, targets).sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    functional.cross_entropy(exact @ weight.double().T, targets, reduction="sum").backward()
    assert exact.grad is not None
    errors = [(part.double() - exact.grad).norm() / exact.grad.norm() for part in (plain_gradient, gradient)]
    assert errors[1] <= 1.1 * errors[0]


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, targets = make_head(5, torch.float32)
    with torch.no_grad():
        assert not head_nll(hidden, weight, targets).requires_grad


def test_logits_that_overflow_an_exponential_are_finite() -> None:
    weight = torch.tensor([[1000.0], [-1000.0]])
    assert head_nll(torch.ones(1, 1), weight, torch.tensor([1])).item() == pytest.approx(2000)
