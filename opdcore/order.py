"""Which prompts a step draws: a pure function of seed, stage and step, so nothing is remembered."""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache

from opdcore.contract.distill import DistillStage
from opdcore.contract.reinforce import ReinforceStage


def draw(
    prompts: int,
    stage: DistillStage | ReinforceStage,
    *,
    seed: int,
    stage_index: int,
    step: int,
) -> list[int]:
    """Rows of the prompts of a step counted from 1, each `rollouts_per_prompt` times.

    Epochs are permutations; a step that crosses the end of one goes on in the next.
    """
    size = stage.prompts_per_step
    rows = take(prompts, size, seed=seed, stage_index=stage_index, step=step)
    return [row for row in rows for _ in range(stage.rollouts_per_prompt)]


def take(count: int, size: int, *, seed: int, stage_index: int, step: int) -> list[int]:
    """The `size` of `count` things that a step counted from 1 takes, epoch after epoch."""
    first = (step - 1) * size
    return [
        _permutation(count, seed_of(seed, stage_index, index // count))[index % count]
        for index in range(first, first + size)
    ]


def probed(prompts: int, *, at_most: int, seed: int, stage_index: int) -> list[int]:
    """Rows that a stage asks once: the first of an order in which every prefix is a random sample."""
    return list(_permutation(prompts, seed_of(seed, stage_index))[:at_most])


def seed_of(*parts: int) -> int:
    """A 63-bit seed that differs wherever a part differs."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@lru_cache(maxsize=2)
def _permutation(prompts: int, seed: int) -> tuple[int, ...]:
    """An epoch's order; the last two are kept, since a step may cross from one to the next."""
    rows = list(range(prompts))
    random.Random(seed).shuffle(rows)
    return tuple(rows)
