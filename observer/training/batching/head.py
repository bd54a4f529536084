"""The head's negative log-likelihood, a few positions at a time: its logits are never all in memory.

What a token's loss passes back to its hidden state depends on that token alone, up to the factor that comes from
above. So it is computed while the logits are there, in the forward pass, and no logits are kept or computed again.
The idea is Liger's fused linear cross entropy, https://arxiv.org/abs/2410.10989, for a head that is not trained.
"""

from __future__ import annotations

from typing import Any, cast

import torch

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Of float32 logits at once. Small on a CPU, where every large block of new memory costs its page faults; large on
CUDA, where small products leave the GPU idle (not measured there)."""


def head_nll(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats, (tokens,) float32, of `targets` (tokens,) under the logits `hidden` (tokens, n) @ `weight` (vocabulary, n).

    Differentiable in `hidden` only; `weight` is frozen.
    """
    assert not weight.requires_grad, "the head is not trained"
    return cast(torch.Tensor, _HeadNLL.apply(hidden, weight, targets))


class _HeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        states = hidden.detach().to(weight.dtype)
        n_rows = max(1, CHUNK_BYTES.get(hidden.device.type, 2**29) // (4 * len(weight)))
        size, device = (min(n_rows, len(states)), len(weight)), states.device
        logits, scores = (torch.empty(size, dtype=dtype, device=device) for dtype in (states.dtype, torch.float32))
        nll = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if wants_gradient else None
        for start in range(0, len(states), n_rows):
            chunk = slice(start, start + n_rows)
            target = targets[chunk, None]
            n = len(target)
            torch.mm(states[chunk], weight.T, out=logits[:n])
            scores[:n].copy_(logits[:n])
            highest = scores[:n].amax(1, keepdim=True)
            wanted = scores[:n].gather(1, target) - highest
            total = scores[:n].sub_(highest).exp_().sum(1, keepdim=True)
            nll[chunk] = (total.log() - wanted)[:, 0]
            if gradient is not None:
                scores[:n].div_(total).scatter_add_(1, target, -torch.ones_like(wanted))
                torch.mm(logits[:n].copy_(scores[:n]), weight, out=gradient[chunk])
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return nll

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (upstream[0][:, None] * gradient).to(ctx.dtype), None, None
