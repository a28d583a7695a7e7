"""Divergences on a support: differentiable functions of both sides' logprobs at a few tokens.

Every function takes (N, K) logprobs of the student p and of the teacher q, of which the teacher's are
constants, and returns one loss per position. Where `mask` is false a slot is empty and has no part.
Knows neither whose tokens these are nor how a gradient gets from them into the logits.

In comments: a = log p - log q, S the support, sg stop-gradient, z the student's logits. Sources:
arXiv 2604.13016 (Eq. 5), arXiv 2605.11182; GKD (arXiv 2306.13649) for the Jensen-Shannon divergence.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opdcore.contract.objective import Divergence

Gathered = Float[Tensor, "N K"]
Mask = Bool[Tensor, "N K"]
Losses = Float[Tensor, "N"]

# The logprob of an empty slot. Finite, because -inf would turn 0 * log 0 and its gradient into NaN.
_LOG_ZERO = -1e30


def stop_gradient(
    p: Gathered,
    q: Gathered,
    mask: Mask,
    *,
    divergence: Divergence,
    beta: float,
    clamp: float | None,
) -> Losses:
    """Return the divergence's sum over S, with a gradient that vanishes at p = q.

    reverse: sum_S p (log p - log q) with the log-ratio held constant (2605.11182), and bounded to
    -clamp..clamp where there is a clamp; dL/dz_j = p_j (a_j [j in S] - sum_S p a). Differentiating
    log p as well would add dm_S/dz_j, m_S the mass on S: that pushes probability out of S whatever
    the teacher says.

    forward: sum_S q (log q - log p); dL/dz_j = (p_j - q_j) [j in S] - p_j sum_S (p - q). The plain
    sum is not stationary at p = q: it pulls mass into S. The term p - sg(p), zero in value, cancels
    that, as it makes each summand the generalised KL q log(q/p) - q + p, which is least at p = q.

    jsd: sum_S beta q log(q/m) + (1-beta) p log(p/m), m = beta q + (1-beta) p. Its slope in log p_j is
    (1-beta) p_j log(p_j/m_j): what a stop-gradient on the log-ratio would leave is all there is.
    """
    match divergence:
        case "reverse":
            ratio = p.detach() - q
            ratio = ratio if clamp is None else ratio.clamp(-clamp, clamp)
            return _sum(p.exp() * ratio, mask)
        case "forward":
            return _sum(q.exp() * (q - p) + p.exp() - p.exp().detach(), mask)
        case "jsd":
            m = _log_mixture(p, q, beta)
            return _sum(beta * q.exp() * (q - m) + (1 - beta) * p.exp() * (p - m), mask)
        case _:
            raise ValueError(f"Unknown divergence {divergence!r}.")


def unnormalised(p: Gathered, q: Gathered, mask: Mask, *, divergence: Divergence) -> Losses:
    """Return the divergence's sum over S, all of it differentiated: biased (2605.11182).

    reverse: dL/dz_j = p_j ((a_j + 1) [j in S] - sum_S p (a + 1)), which is that of `stop_gradient` and
    dm_S/dz_j besides. forward: dL/dz_j = p_j sum_S q - q_j [j in S].
    """
    match divergence:
        case "reverse":
            return _sum(p.exp() * (p - q), mask)
        case "forward":
            return _sum(q.exp() * (q - p), mask)
        case _:
            raise ValueError(
                f"No objective is 'unnormalised' with {divergence!r} divergence: it has no bias."
            )


def renormalised(
    p: Gathered, q: Gathered, mask: Mask, *, divergence: Divergence, beta: float
) -> Losses:
    """Return the divergence of both sides renormalised on S (2604.13016 Eq. 5).

    dL/dz_j = p'_j (a'_j - KL') on S and 0 elsewhere for the reverse KL, with p' = p / m_S. With one
    token in S it is identically 0 and teaches nothing; where S is empty it is 0.
    """
    return divergence_of(
        _filled(p, mask).log_softmax(-1),
        _filled(q, mask).log_softmax(-1),
        divergence=divergence,
        beta=beta,
    )


def tail_bucket(
    p: Gathered,
    q: Gathered,
    mask: Mask,
    *,
    p_tail: Float[Tensor, "N 1"],
    q_tail: Float[Tensor, "N 1"],
    divergence: Divergence,
    beta: float,
) -> Losses:
    """Return the divergence over the tokens of S and one bucket of all the others (2605.11182).

    `p_tail` and `q_tail` are the logprobs of that bucket.
    """
    return divergence_of(
        torch.cat([_filled(p, mask), p_tail], dim=1),
        torch.cat([_filled(q, mask), q_tail], dim=1),
        divergence=divergence,
        beta=beta,
    )


def divergence_of(p: Gathered, q: Gathered, *, divergence: Divergence, beta: float) -> Losses:
    """Return KL(p||q), KL(q||p) or beta KL(q||m) + (1-beta) KL(p||m) of two whole distributions."""
    match divergence:
        case "reverse":
            return _kl(p, q)
        case "forward":
            return _kl(q, p)
        case "jsd":
            m = _log_mixture(p, q, beta)
            return beta * _kl(q, m) + (1 - beta) * _kl(p, m)
        case _:
            raise ValueError(f"Unknown divergence {divergence!r}.")


def _log_mixture(p: Gathered, q: Gathered, beta: float) -> Gathered:
    return torch.logaddexp(q + math.log(beta), p + math.log1p(-beta))


def _kl(from_logprobs: Gathered, to_logprobs: Gathered) -> Losses:
    return (from_logprobs.exp() * (from_logprobs - to_logprobs)).sum(-1)


def _filled(logprobs: Gathered, mask: Mask) -> Gathered:
    return logprobs.masked_fill(~mask, _LOG_ZERO)


def _sum(terms: Gathered, mask: Mask) -> Losses:
    return terms.masked_fill(~mask, 0.0).sum(-1)
