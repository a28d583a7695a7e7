"""Going back through autograd from a tensor whose gradient is known already.

`tensor.backward(gradient)` does the same, but checks the two shapes by symbolic algebra, whose import
takes seconds of CPU time in every fresh process. Knows nothing of losses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def carry_back(tensor: Tensor, gradient: Tensor) -> None:
    """Give `gradient` to what `tensor` was computed from; both have one shape."""
    _Known.apply(tensor, gradient).backward()


class _Known(torch.autograd.Function):
    """A scalar without a value, whose gradient in the tensor is the one that is known."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return tensor.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, one: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - autograd's
        return ctx.gradient, None
