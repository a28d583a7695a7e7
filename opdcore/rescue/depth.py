"""How deep into a response both sides agree: what a shorter horizon is read from."""

from __future__ import annotations

from opdcore.contract.positions import Positions

OVERLAP, DIVERGENCE = "effective_overlap", "reverse_kl"
# Our choice: overlap that fell by so much, or never reached so much, is no ground to learn on.
FALL = 0.1
LEAST = 0.6
# As the verdict HORIZON_RISK has it: a divergence that grows so many times, to so many nats.
PARTED_RATIO, PARTED_NATS = 4.0, 1.0


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
    """The response token at which two sides part that agree before it; None where they do not."""
    divergence = start.reached(DIVERGENCE)
    if divergence[0] is None:
        return None
    least = max(PARTED_NATS, PARTED_RATIO * divergence[0])
    for edge, nats in zip(start.edges[1:], divergence[1:], strict=False):
        if nats is not None and nats > least:
            return edge
    return None
