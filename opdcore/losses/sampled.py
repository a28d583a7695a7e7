"""Losses of the sampled token alone: differentiable functions of its logprob on both sides.

Every function takes (N, 1) logprobs of the student p and of the teacher q, of which the teacher's are
constants, and returns one loss per position. Knows nothing of the other tokens.

In comments: A = log q - log p at the sampled token, sg stop-gradient. Sources: arXiv 2604.13016
(Eq. 3), arXiv 2605.11182; the names k1, k2, k3 are John Schulman's.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Sampled = Float[Tensor, "N 1"]
Losses = Float[Tensor, "N"]


def policy_gradient(p: Sampled, q: Sampled, *, clamp: float | None, power: float) -> Losses:
    """Return -sg(reward) log p, the reward being A, that is log q - log p.

    Its gradient is that of the full reverse KL in expectation over the sampled token; its value
    means little, so report `k1` beside it. `clamp` bounds the reward to -clamp..clamp nats. With a
    `power` c above 0 the reward is (q^c - p^c) / c (2606.17199): it has A's sign, lies within
    -1/c..1/c, and tends to A as c tends to 0.
    """
    reward = q - p.detach() if power == 0 else _power_reward(p.detach(), q, power)
    if clamp is not None:
        reward = reward.clamp(-clamp, clamp)
    return (-reward * p).squeeze(1)


def k1(p: Sampled, q: Sampled) -> Losses:
    """Return log p - log q, unbiased for the reverse KL (2604.13016 Eq. 3).

    A value only, detached: differentiated directly, its gradient would not contain the teacher.
    """
    return (p - q).detach().squeeze(1)


def k2(p: Sampled, q: Sampled) -> Losses:
    """Return A^2 / 2. Biased in value; dL/dlog p = -A, the very gradient of `policy_gradient`."""
    return (q - p).square().squeeze(1) / 2


def k3(p: Sampled, q: Sampled) -> Losses:
    """Return e^A - 1 - A: unbiased for the reverse KL in value, and never negative.

    dL/dlog p = 1 - q/p, which in expectation over the sampled token is the gradient of the *forward*
    KL, with the heavy tail of q/p.
    """
    difference = q - p
    return (difference.expm1() - difference).squeeze(1)


def _power_reward(p: Sampled, q: Sampled, power: float) -> Sampled:
    return ((power * q).exp() - (power * p).exp()) / power
