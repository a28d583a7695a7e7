"""Losses at a block of positions, and their gradient in the student's logits, in closed form.

A truncated or sampled loss depends on a few logprobs of each row only. With g = dL/dlog p on the
support S, t = (dL/dlog p_tail) / p_tail where the tail has a bucket, and G the sum of both,

    dL/dz_j = g_j - p_j G        for j in S,
    dL/dz_j = p_j (t - G)        elsewhere,

so that autograd sees (N, K) tensors and one product makes the (N, V) table. A loss over the full
vocabulary has its own table. Knows positions as rows, and nothing of chunks, heads or batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opdcore.comparison import Column, Comparison, Distribution, Table
from opdcore.losses import sampled, truncated
from opdcore.losses.objective import Objective
from opdcore.support import Support, select, whole

# The least probability of a tail of which a logarithm is taken.
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class _Tail:
    """The mass outside a support: the weights with the support's tokens zeroed, and its logprob."""

    weights: Table
    logprob: Float[Tensor, "N 1"]


def position_losses(
    comparison: Comparison,
    sampled_ids: Int[Tensor, "N"],
    *,
    objective: Objective,
    scale: Float[Tensor, "N 1"],
    gradient: Table,
) -> Column:
    """Return the objective's loss at each position; write `scale` times its gradient to `gradient`.

    `gradient` may be the table of logits that the comparison was made of. Raises ValueError for an
    unknown or unsound objective and for k above what was ranked.
    """
    match objective.form, objective.divergence:
        case "sampled", "reverse":
            support = whole(sampled_ids[:, None])
            return _sparse(comparison, support, objective, scale, gradient)
        case "top_k", _:
            support = select(objective.support, comparison.top(objective.k))
            return _sparse(comparison, support, objective, scale, gradient)
        case "full", "reverse":
            return _reverse(comparison, scale, gradient)
        case "full", "forward":
            return _forward(comparison, scale, gradient)
        case "full", "jsd":
            return _jsd(comparison, objective.jsd_beta, scale, gradient)
    raise ValueError(
        f"No sound objective is {objective.form!r} with {objective.divergence!r} divergence."
    )


def add_reverse(comparison: Comparison, *, scale: Float[Tensor, "N 1"], gradient: Table) -> Column:
    """Return KL(p||q) over the full vocabulary; add `scale` times its gradient to `gradient`."""
    student = comparison.student
    terms = comparison.difference - (comparison.offset + comparison.reverse_kl[:, None])
    gradient.add_(terms.mul_(student.weights).mul_(scale / student.total))
    return comparison.reverse_kl


def add_forward(comparison: Comparison, *, scale: Float[Tensor, "N 1"], gradient: Table) -> Column:
    """Return KL(q||p) over the full vocabulary; add `scale` times its gradient to `gradient`."""
    student, teacher = comparison.student, comparison.teacher
    gradient.add_(student.weights * (scale / student.total))
    gradient.sub_(teacher.weights * (scale / teacher.total))
    return comparison.forward_kl


def chosen(comparison: Comparison, objective: Objective) -> Bool[Tensor, "N"]:
    """Return the positions that the objective trains on, by entropy and divergence (2604.14084)."""
    uncertain = comparison.student_entropy >= objective.selection_entropy_nats
    apart = comparison.reverse_kl >= objective.selection_kl_nats
    match objective.token_selection:
        case "all":
            return torch.ones_like(uncertain)
        case "entropy":
            return uncertain
        case "divergence":
            return apart
        case "either":
            return uncertain | apart
        case _:
            raise ValueError(f"Unknown token selection {objective.token_selection!r}.")


def _reverse(comparison: Comparison, scale: Tensor, gradient: Table) -> Column:
    """KL(p||q) (2604.13016 Eq. 4); dL/dz_j = p_j (a_j - KL)."""
    student = comparison.student
    shift = comparison.offset + comparison.reverse_kl[:, None]
    torch.sub(comparison.difference, shift, out=gradient)
    gradient.mul_(student.weights).mul_(scale / student.total)
    return comparison.reverse_kl


def _forward(comparison: Comparison, scale: Tensor, gradient: Table) -> Column:
    """KL(q||p); dL/dz_j = p_j - q_j."""
    student, teacher = comparison.student, comparison.teacher
    torch.mul(student.weights, scale / student.total, out=gradient)
    gradient.sub_(teacher.weights * (scale / teacher.total))
    return comparison.forward_kl


def _jsd(comparison: Comparison, beta: float, scale: Tensor, gradient: Table) -> Column:
    """The generalised JSD, beta KL(q||m) + (1-beta) KL(p||m), m = beta q + (1-beta) p (GKD, 2306.13649).

    dL/dz_j = (1-beta) p_j (log(p_j/m_j) - KL(p||m)).
    """
    student, teacher = comparison.student, comparison.teacher
    p = student.weights / student.total
    mixture = teacher.weights * (beta / teacher.total)
    mixture.add_(p, alpha=1 - beta).clamp_min_(_TINY).log_()
    torch.sub(student.logits, mixture, out=gradient).sub_(student.log_total)
    p.mul_(gradient)
    kl_student = p.sum(-1)
    # KL(q||m) = KL(q||p) + E_q[log p - log m]
    kl_teacher = comparison.forward_kl + (
        torch.linalg.vecdot(teacher.weights, gradient) / teacher.total.squeeze(1)
    )
    gradient.sub_(kl_student[:, None]).mul_(student.weights)
    gradient.mul_((1 - beta) * scale / student.total)
    return beta * kl_teacher + (1 - beta) * kl_student


def _sparse(
    comparison: Comparison, support: Support, objective: Objective, scale: Tensor, gradient: Table
) -> Column:
    """A loss of a few logprobs of each row; see the module for its gradient."""
    student, teacher = comparison.student, comparison.teacher
    p = student.logprobs_at(support.ids).requires_grad_()
    q = teacher.logprobs_at(support.ids)
    if objective.form == "top_k" and objective.normalisation == "tail_bucket":
        tail = _tail(student, support)
        rest = tail.logprob.requires_grad_(), _tail(teacher, support).logprob
        with torch.enable_grad():
            losses = truncated.tail_bucket(
                p, q, support.mask, p_tail=rest[0], q_tail=rest[1],
                divergence=objective.divergence, beta=objective.jsd_beta,
            )  # fmt: skip
            slope, tail_slope = torch.autograd.grad(losses.sum(), [p, rest[0]])
        inside = slope.masked_fill(~support.mask, 0.0)
        _spread_with_tail(
            student, support, inside=inside, tail=tail, tail_slope=tail_slope,
            scale=scale, gradient=gradient,
        )  # fmt: skip
    else:
        with torch.enable_grad():
            losses = _support_losses(p, q, support.mask, objective)
            (slope,) = torch.autograd.grad(losses.sum(), [p])
        _spread(student, support, slope.masked_fill(~support.mask, 0.0), scale, gradient)
    return losses.detach()


def _support_losses(p: Tensor, q: Tensor, mask: Tensor, objective: Objective) -> Column:
    beta, divergence = objective.jsd_beta, objective.divergence
    if objective.form == "sampled":
        return _sampled_losses(p, q, objective)
    match objective.normalisation:
        case "stop_gradient":
            return truncated.stop_gradient(
                p, q, mask, divergence=divergence, beta=beta, clamp=objective.reward_clamp
            )
        case "unnormalised":
            return truncated.unnormalised(p, q, mask, divergence=divergence)
        case "renormalised":
            return truncated.renormalised(p, q, mask, divergence=divergence, beta=beta)
        case _:
            raise ValueError(f"Unknown normalisation {objective.normalisation!r}.")


def _sampled_losses(p: Tensor, q: Tensor, objective: Objective) -> Column:
    match objective.sampled_loss:
        case "policy_gradient":
            return sampled.policy_gradient(
                p, q, clamp=objective.reward_clamp, power=objective.reward_power
            )
        case "k2":
            return sampled.k2(p, q)
        case "k3":
            return sampled.k3(p, q)
        case _:
            raise ValueError(f"Unknown sampled loss {objective.sampled_loss!r}.")


def _tail(side: Distribution, support: Support) -> _Tail:
    # Summed over the tail itself: 1 - m_S cancels to nothing in float32 where m_S is near 1.
    weights = side.weights.clone()
    _zero_members(weights, support)
    mass = weights.sum(-1, keepdim=True) / side.total
    return _Tail(weights, mass.clamp_min(_TINY).log())


def _spread(
    student: Distribution, support: Support, inside: Tensor, scale: Tensor, gradient: Table
) -> None:
    """Write the gradient in the logits from `inside`, that in the support's logprobs."""
    total = inside.sum(-1, keepdim=True)
    torch.mul(student.weights, -total * scale / student.total, out=gradient)
    gradient.scatter_add_(1, support.ids, inside * scale)


def _spread_with_tail(
    student: Distribution,
    support: Support,
    *,
    inside: Tensor,
    tail: _Tail,
    tail_slope: Tensor,
    scale: Tensor,
    gradient: Table,
) -> None:
    """Write the gradient in the logits from those in the support's and in the tail's logprobs.

    The support's own entries are written apart from the table p (t - G): t may be so large that
    float32 would lose them in the difference.
    """
    total = inside.sum(-1, keepdim=True) + tail_slope
    pull = tail_slope / tail.logprob.detach().exp()
    p = student.logprobs_at(support.ids).exp()
    values = (inside - p * total).masked_fill(~support.mask, 0.0)
    # From here on the student's logits may be overwritten.
    torch.mul(tail.weights, (pull - total) * scale / student.total, out=gradient)
    gradient.scatter_add_(1, support.ids, values * scale)


def _zero_members(weights: Table, support: Support) -> None:
    # A product, since in a union an id may fill one live slot and one empty slot.
    empty = (~support.mask).to(weights.dtype)
    weights.scatter_reduce_(1, support.ids, empty, "prod")
