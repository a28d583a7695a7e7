"""The laboratory's task families and the prompt sets drawn from them.

Two families, `sums` and `cups`; each has two thinking styles and one new skill that the teacher
knows and the student half believes. This module knows no tokens, no models and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from opdcore.lab import cups, sums
from opdcore.lab.solutions import Exercise, Family

FamilyName = Literal["sums", "cups"]
FAMILIES: dict[FamilyName, Family] = {"sums": sums, "cups": cups}

TRAIN_PROMPTS = 2000
HELD_OUT_PROMPTS = 288


@dataclass(frozen=True)
class PromptSets:
    """Disjoint exercises by role."""

    train: list[Exercise]
    held_out: list[Exercise]


def prompt_sets(family: FamilyName, *, seed: int) -> PromptSets:
    """Draw distinct exercises and split them, so that both roles follow one distribution."""
    rng = Random(f"{family} prompts {seed}")
    distinct: dict[str, Exercise] = {}
    while len(distinct) < TRAIN_PROMPTS + HELD_OUT_PROMPTS:
        exercise = FAMILIES[family].draw(rng)
        distinct.setdefault(exercise.prompt, exercise)
    exercises = list(distinct.values())
    rng.shuffle(exercises)
    return PromptSets(train=exercises[:TRAIN_PROMPTS], held_out=exercises[TRAIN_PROMPTS:])
