"""The objective: what is minimised at each position, as plain values.

Every value is given, since the defaults live in the contract. It knows no tensor and no recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

from opdcore.contract.objective import (
    Divergence,
    Form,
    Normalisation,
    SampledLoss,
    Support,
    TokenSelection,
)


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a position and what is added to it; nats unless said otherwise.

    `support`, `normalisation` and `k` matter to form top_k only, `sampled_loss` and `reward_power` to
    form sampled only, `jsd_beta` to divergence jsd only.
    """

    form: Form
    divergence: Divergence
    support: Support
    normalisation: Normalisation
    k: int
    jsd_beta: float
    sampled_loss: SampledLoss
    reward_clamp: float | None
    reward_power: float
    extrapolation: float
    high_entropy_forward_weight: float
    high_entropy_nats: float
    initial_kl_weight: float
    token_selection: TokenSelection
    selection_entropy_nats: float
    selection_kl_nats: float
