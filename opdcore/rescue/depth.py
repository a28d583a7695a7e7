"""How deep into a response both sides agree: what a shorter horizon is read from."""

from __future__ import annotations

from opdcore.contract.positions import Positions

OVERLAP = "effective_overlap"
# Our choice: overlap that fell by so much, or never reached so much, is no ground to learn on.
FALL = 0.1
LEAST = 0.6


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
    first = start.reached(OVERLAP)[0]
    return None if first is None or first < LEAST else sound_tokens(start, start)
