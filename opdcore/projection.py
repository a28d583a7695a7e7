"""A head's logits of hidden states, with a weight gradient that is summed where it lies.

Autograd makes a new (V, H) table for the gradient of every chunk of positions and then adds it to the
sum; at a vocabulary of 152,000 that takes longer than the products themselves. Here the product is
added to the sum. So the weight's gradient appears in `weight.grad` and nowhere else: no hook sees it,
and `torch.autograd.grad` cannot ask for it. Knows nothing of losses.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


def through(head: nn.Module, hidden: Tensor) -> Tensor:
    """Return the head's logits; a plain linear head in training gathers its own gradient."""
    if torch.is_grad_enabled() and isinstance(head, nn.Linear):
        return linear(hidden, head.weight, head.bias)
    logits: Tensor = head(hidden)
    return logits


def linear(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, "V"] | None = None,
) -> Float[Tensor, "N V"]:
    """Return `hidden @ weight.T + bias`; weight and bias are parameters, or frozen."""
    logits: Tensor = _Linear.apply(hidden, weight, bias)
    return logits


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.weight, ctx.bias = weight, bias
        return functional.linear(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        (hidden,) = ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        if weight.requires_grad:
            if weight.grad is None:
                weight.grad = gradient.T @ hidden
            else:
                weight.grad.addmm_(gradient.T, hidden)
        if bias is not None and bias.requires_grad:
            total = gradient.sum(0)
            bias.grad = total if bias.grad is None else bias.grad.add_(total)
        wanted = ctx.needs_input_grad[0]
        return (gradient @ weight if wanted else None), None, None
