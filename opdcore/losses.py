"""The objectives of on-policy distillation, as pure functions of two tables of logprobs.

Every function takes (N, V) log-softmaxed rows at the valid response positions of student-sampled
prefixes and returns one loss per position, differentiable in the student's logprobs; the teacher is
a constant. Nothing here knows of recipes, prompts, masks or batches: the caller has already dropped
padding, cut both sides to the shared vocabulary and applied the temperature.

Notation in comments: p student, q teacher, a = log p - log q, S the support, m_S = sum_S p,
sg stop-gradient, z the student's logits. Papers: arXiv 2604.13016 (Eq. 1-5), arXiv 2605.11182.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from opdcore.contract.recipe import Divergence, Form, Normalisation
from opdcore.contract.recipe import Support as SupportName
from opdcore.support import Support, TopK, members, select, top_k

Logprobs = Float[Tensor, "N V"]
Gathered = Float[Tensor, "N K"]
Losses = Float[Tensor, "N"]

# The logprob of an empty slot. Finite, because -inf would turn 0 * log 0 and its gradient into NaN.
_LOG_ZERO = -1e30


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised at each position; `support`, `normalisation` and `k` matter to top_k only."""

    form: Form
    divergence: Divergence
    support: SupportName
    normalisation: Normalisation
    k: int


def position_losses(
    student_logprobs: Logprobs,
    teacher_logprobs: Logprobs,
    sampled_ids: Int[Tensor, "N"],
    *,
    objective: Objective,
    top: TopK | None = None,
) -> Losses:
    """Return the objective's loss at each position.

    `top` saves a second ranking where the caller already has one at least `objective.k` wide.
    Raises ValueError for an unknown or unsound objective and for k above the vocabulary.
    """
    match objective.form, objective.divergence:
        case "sampled", "reverse":
            return sampled_token(student_logprobs, teacher_logprobs, sampled_ids)
        case "full", "reverse":
            return reverse_kl(student_logprobs, teacher_logprobs)
        case "full", "forward":
            return forward_kl(student_logprobs, teacher_logprobs)
        case "top_k", "reverse" | "forward":
            ranked = top or top_k(student_logprobs, teacher_logprobs, k=objective.k)
            return _top_k_losses(student_logprobs, teacher_logprobs, ranked, objective)
    raise ValueError(f"No sound objective is {objective.form!r} with {objective.divergence!r}.")


def reverse_kl(student_logprobs: Logprobs, teacher_logprobs: Logprobs) -> Losses:
    """Return KL(p||q) over the full vocabulary (2604.13016 Eq. 4); dL/dz_j = p_j (a_j - KL)."""
    losses: Losses = _ReverseKL.apply(student_logprobs, teacher_logprobs)
    return losses


def forward_kl(student_logprobs: Logprobs, teacher_logprobs: Logprobs) -> Losses:
    """Return KL(q||p) over the full vocabulary; dL/dz_j = p_j - q_j."""
    return _kl(teacher_logprobs, student_logprobs)


def sampled_token(
    student_logprobs: Logprobs, teacher_logprobs: Logprobs, sampled_ids: Int[Tensor, "N"]
) -> Losses:
    """Return the policy-gradient form -sg(log q - log p) log p at the sampled token.

    Its gradient is that of the full reverse KL in expectation over the sampled token; its value
    means little, so report `sampled_token_k1` beside it.
    """
    student = _at(student_logprobs, sampled_ids)
    token_reward = _at(teacher_logprobs, sampled_ids) - student.detach()
    return -token_reward * student


def sampled_token_k1(
    student_logprobs: Logprobs, teacher_logprobs: Logprobs, sampled_ids: Int[Tensor, "N"]
) -> Losses:
    """Return log p - log q at the sampled token: unbiased for the reverse KL (2604.13016 Eq. 3).

    A value only, detached: differentiated directly, its gradient would not contain the teacher.
    """
    return (_at(student_logprobs, sampled_ids) - _at(teacher_logprobs, sampled_ids)).detach()


def stop_gradient_reverse(
    student_logprobs: Logprobs, teacher_logprobs: Logprobs, support: Support
) -> Losses:
    """Return sum_S p (log p - log q) with the log p inside held constant (2605.11182).

    dL/dz_j = p_j (a_j [j in S] - sum_S p a). Differentiating log p as well would add dm_S/dz_j,
    that is, push probability mass out of S whatever the teacher says.
    """
    p, q = _gather(student_logprobs, support), _gather(teacher_logprobs, support)
    return _sum(p.exp() * (p.detach() - q), support)


def stop_gradient_forward(
    student_logprobs: Logprobs, teacher_logprobs: Logprobs, support: Support
) -> Losses:
    """Return sum_S q (log q - log p), with the gradient's truncation bias removed.

    dL/dz_j = (p_j - q_j) [j in S] - p_j sum_S (p - q). The plain truncated sum is not stationary at
    p = q: it pulls probability mass into S. The term p - sg(p), zero in value, cancels that, as it
    makes each summand the generalised KL q log(q/p) - q + p, which is least at p = q.
    """
    p, q = _gather(student_logprobs, support), _gather(teacher_logprobs, support)
    return _sum(q.exp() * (q - p) + p.exp() - p.exp().detach(), support)


def renormalised(from_logprobs: Logprobs, to_logprobs: Logprobs, support: Support) -> Losses:
    """Return KL between both sides renormalised on S (2604.13016 Eq. 5); 0 where S is empty.

    With one token in S it is identically 0 and teaches nothing.
    """
    return _kl(
        _filled(from_logprobs, support).log_softmax(-1),
        _filled(to_logprobs, support).log_softmax(-1),
    )


def tail_bucket(from_logprobs: Logprobs, to_logprobs: Logprobs, support: Support) -> Losses:
    """Return KL over the tokens of S and one bucket that holds all the others (2605.11182)."""
    inside = members(support, vocabulary=from_logprobs.shape[1])
    return _kl(_with_tail(from_logprobs, support, inside), _with_tail(to_logprobs, support, inside))


def _top_k_losses(
    student_logprobs: Logprobs, teacher_logprobs: Logprobs, ranked: TopK, objective: Objective
) -> Losses:
    support = select(
        objective.support, ranked.first(objective.k), vocabulary=student_logprobs.shape[1]
    )
    p, q = student_logprobs, teacher_logprobs
    match objective.normalisation, objective.divergence:
        case "stop_gradient", "reverse":
            return stop_gradient_reverse(p, q, support)
        case "stop_gradient", "forward":
            return stop_gradient_forward(p, q, support)
        case "renormalised", "reverse":
            return renormalised(p, q, support)
        case "renormalised", "forward":
            return renormalised(q, p, support)
        case "tail_bucket", "reverse":
            return tail_bucket(p, q, support)
        case "tail_bucket", "forward":
            return tail_bucket(q, p, support)
    raise ValueError(f"Unknown normalisation {objective.normalisation!r}.")


class _ReverseKL(torch.autograd.Function):
    """sum p (log p - log q) with one saved (N, V) table and one product on the way back.

    d(p log p)/d(log p) = p (log p + 1), but sum_v p_v d(log p_v) = 0 for normalised rows, so the
    table p a is both the summand and the gradient.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, student_logprobs: Logprobs, teacher_logprobs: Logprobs) -> Losses:
        terms = (student_logprobs - teacher_logprobs).mul_(student_logprobs.exp())
        ctx.save_for_backward(terms)
        return terms.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, gradient: Losses) -> tuple[Logprobs, None]:
        (terms,) = ctx.saved_tensors
        return gradient[:, None] * terms, None


def _kl(from_logprobs: Gathered, to_logprobs: Gathered) -> Losses:
    return (from_logprobs.exp() * (from_logprobs - to_logprobs)).sum(-1)


def _at(logprobs: Logprobs, ids: Int[Tensor, "N"]) -> Losses:
    return logprobs.gather(1, ids[:, None]).squeeze(1)


def _gather(logprobs: Logprobs, support: Support) -> Gathered:
    return logprobs.gather(1, support.ids)


def _filled(logprobs: Logprobs, support: Support) -> Gathered:
    return _gather(logprobs, support).masked_fill(~support.mask, _LOG_ZERO)


def _sum(terms: Gathered, support: Support) -> Losses:
    return terms.masked_fill(~support.mask, 0.0).sum(-1)


def _with_tail(logprobs: Logprobs, support: Support, inside: Tensor) -> Gathered:
    # Summed over the tail itself: 1 - m_S cancels to nothing in float32 where m_S is near 1.
    tail = logprobs.masked_fill(inside, _LOG_ZERO).logsumexp(-1, keepdim=True)
    return torch.cat([_filled(logprobs, support), tail], dim=1)
