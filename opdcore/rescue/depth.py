"""How deep into a response both sides agree: what a shorter horizon is read from."""

from __future__ import annotations

from opdcore.contract.calibration import Thresholds
from opdcore.contract.positions import Positions

# Steps at a stage's start whose mean says whether the two ever agreed.
FIRST_STEPS = 3
OVERLAP, DIVERGENCE = "effective_overlap", "reverse_kl"
# Our choice: overlap that fell by so much, or never reached so much, is no ground to learn on.
FALL = 0.1
LEAST = 0.6
# The laboratory's cut-offs of the verdict HORIZON_RISK.
LIMITS = Thresholds()


def sound_tokens(start: Positions, now: Positions) -> int | None:
    """The response token up to which overlap holds, against the run's start; None where it all does.

    At least the first chunk counts as sound, since something has to be trained on.
    """
    began, is_now = start.reached(OVERLAP), now.reached(OVERLAP)
    for index in range(1, min(len(began), len(is_now))):
        before, after = began[index], is_now[index]
        if after is None:
            continue
        if after < LEAST or (before is not None and before - after > FALL):
            return now.edges[index]
    return None


def parted_tokens(start: Positions) -> int | None:
    """The response token at which two sides part that agree before it; None where they do not.

    They have parted where their overlap is low, though the first chunk's is not, or where they diverge
    several times as much as in the first.
    """
    overlap, divergence = start.reached(OVERLAP), start.reached(DIVERGENCE)
    agree = overlap[0] is not None and overlap[0] >= LEAST
    nats = (
        None
        if divergence[0] is None
        else max(LIMITS.horizon_kl, LIMITS.horizon_kl_ratio * divergence[0])
    )
    for index, edge in enumerate(start.edges[1:-1], start=1):
        shared, apart = overlap[index], divergence[index]
        if agree and shared is not None and shared < LEAST:
            return edge
        if nats is not None and apart is not None and apart > nats:
            return edge
    return None
