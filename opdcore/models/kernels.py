"""The decoder's element-wise operations with their gradients in closed form.

Autograd keeps and re-reads a table for every elementary operation; on a CPU a small model spends more
time on those tables than on its matrix products. Each function here reads its input once or twice and
saves only that. They know tensors, no model; on a GPU torch's own fused norm is used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise: x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (arXiv 1910.07467)."""
    if x.is_cuda:
        return functional.rms_norm(x, weight.shape, weight, epsilon)
    normalised: Tensor = _RMSNorm.apply(x.to(weight.dtype), weight, epsilon)
    return normalised


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202)."""
    product: Tensor = _SwiGLU.apply(gate, up)
    return product


def rotate(x: Tensor, cosines: Tensor, signed_sines: Tensor) -> Tensor:
    """Rotary position embedding of (..., D): plane i is the pair (i, i + D/2) (arXiv 2104.09864).

    `signed_sines` holds -sin in its first half and sin in its second, as `rotary_tables` gives it.
    """
    turned: Tensor = _Rotate.apply(x, cosines, signed_sines)
    return turned


def rotary_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and signed sin (*positions, 1, D) of the positions' angles; 1 stands for the heads."""
    angles = (positions[..., None].float() * frequencies)[..., None, :]
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat([cosines, cosines], -1), torch.cat([-sines, sines], -1)


def inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x^2) + epsilon) over the last dimension, which stays as 1."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return square.div_(x.shape[-1]).add_(epsilon).rsqrt_()


def turned(x: Tensor, cosines: Tensor, signed_sines: Tensor) -> Tensor:
    """`rotate` without a gradient."""
    return (x * cosines).addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sines)


class _RMSNorm(torch.autograd.Function):
    """With n = x r, r = 1/rms: dx = r (g w - n mean(g w n)), dw = sum over rows of g n."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = inverse_rms(x, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normalised = x * inverse
        product = gradient * normalised
        to_weight = product.flatten(0, -2).sum(0)
        mean = (product @ weight).div_(x.shape[-1])[..., None]
        to_x = (gradient * weight).sub_(normalised.mul_(mean)).mul_(inverse)
        return to_x, to_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return to_gate, functional.silu(gate).mul_(gradient)


class _Rotate(torch.autograd.Function):
    """A rotation's transpose is the rotation back: the same with the sines' signs turned."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cosines: Tensor, signed_sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, signed_sines)
        return turned(x, cosines, signed_sines)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, signed_sines = ctx.saved_tensors
        return turned(gradient, cosines, -signed_sines), None, None
