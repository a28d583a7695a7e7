"""The policy gradient of sampled tokens: each pushes its own log-probability by the weight it is given.

    L = - sum_i w_i log p(y_i) + b sum_i KL(p_i || p0_i),  p = softmax(z / T) over the shared ids
    dL/dz_j = (w_i (p_j - [j = y_i]) + b p_j (log p_j - log p0_j - KL_i)) / T

Strictly on-policy, so p is the distribution that wrote the tokens, and w_i is an advantage over the
step's tokens. Knows heads only as callables, and nothing of rewards, groups or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opdcore.logits_chunks import rows_per_chunk
from opdcore.scoring import back_through_head
from opdcore.sides import Side


@dataclass(frozen=True, slots=True)
class Policy:
    """What p is: a softmax over the ids below `vocabulary`, at a temperature."""

    vocabulary: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Told:
    """At each of N positions: log p(y), the entropy of p, and KL(p || p0), 0 without an initial one."""

    logprobs: Float[Tensor, "N"]
    entropies: Float[Tensor, "N"]
    initial_kl: Float[Tensor, "N"]


def push(
    student: Side,
    ids: Int[Tensor, "N"],
    *,
    policy: Policy,
    weights: Float[Tensor, "N"],
    initial: Side | None = None,
    kl_scale: float = 0.0,
) -> Told:
    """Back-propagate L, `weights` being w and `kl_scale` b; return what was seen on the way."""
    parts: list[Told] = []

    def gradient_of(logits: Tensor, rows: slice) -> Tensor:
        logprobs = _logprobs(logits, policy)
        start = _start(initial, rows, policy)
        told = _told(logprobs, ids[rows], start)
        parts.append(told)
        scale = weights[rows, None] / policy.temperature
        gradient = logits.new_zeros(logits.shape, dtype=torch.float32)
        shared = gradient[:, : policy.vocabulary]
        torch.exp(logprobs, out=shared)
        if start is not None:
            away = logprobs - start - told.initial_kl[:, None]
            shared.mul_(scale + kl_scale / policy.temperature * away)
        else:
            shared.mul_(scale)
        return gradient.scatter_add_(1, ids[rows, None], -scale)

    back_through_head(student.hidden, student.project, gradient_of, vocabulary=policy.vocabulary)
    return joined(parts)


@torch.no_grad()
def read(student: Side, ids: Int[Tensor, "N"], *, policy: Policy) -> Told:
    """What `push` sees, without a gradient and without the start."""
    size = rows_per_chunk(policy.vocabulary, student.hidden.device.type)
    parts = zip(student.hidden.split(size), ids.split(size), strict=True)
    return joined(
        [_told(_logprobs(student.project(some), policy), few, None) for some, few in parts]
    )


def joined(parts: Sequence[Told]) -> Told:
    """The positions of all parts, one after the other."""
    return Told(
        torch.cat([part.logprobs for part in parts]),
        torch.cat([part.entropies for part in parts]),
        torch.cat([part.initial_kl for part in parts]),
    )


def _logprobs(logits: Tensor, policy: Policy) -> Tensor:
    shared = logits[:, : policy.vocabulary].float()
    return (shared / policy.temperature).log_softmax(-1)


def _start(initial: Side | None, rows: slice, policy: Policy) -> Tensor | None:
    if initial is None:
        return None
    return _logprobs(initial.project(initial.hidden[rows]), policy)


def _told(logprobs: Tensor, ids: Tensor, start: Tensor | None) -> Told:
    probabilities = logprobs.exp()
    entropies = -(probabilities * logprobs).sum(-1)
    kl = torch.zeros_like(entropies)
    if start is not None:
        kl = (probabilities * (logprobs - start)).sum(-1)
    return Told(logprobs.gather(1, ids[:, None]).squeeze(1), entropies, kl)
