"""The laboratory's task families and the prompt sets drawn from them.

Two families, `sums` and `cups`; each has two thinking styles and one new skill that the teacher
knows and the student half believes. This module knows no tokens, no models and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from opdcore.contract.prompt import Prompt
from opdcore.lab import cups, sums
from opdcore.lab.solutions import Exercise, Family

FamilyName = Literal["sums", "cups"]
FAMILIES: dict[FamilyName, Family] = {"sums": sums, "cups": cups}

TRAIN_PROMPTS = 2000
HELD_OUT_PROMPTS = 288


@dataclass(frozen=True)
class PromptSets:
    """Disjoint prompts by role."""

    train: list[Prompt]
    held_out: list[Prompt]


def prompt_sets(family: FamilyName, *, seed: int) -> PromptSets:
    """Draw distinct prompts and split them, so that both roles follow one distribution."""
    rng = Random(f"{family} prompts {seed}")
    distinct: dict[str, Exercise] = {}
    while len(distinct) < TRAIN_PROMPTS + HELD_OUT_PROMPTS:
        exercise = FAMILIES[family].draw(rng)
        distinct.setdefault(exercise.prompt, exercise)
    prompts = [
        Prompt(prompt=each.prompt, answer=each.answer, tags=tuple(each.tags))
        for each in distinct.values()
    ]
    rng.shuffle(prompts)
    return PromptSets(train=prompts[:TRAIN_PROMPTS], held_out=prompts[TRAIN_PROMPTS:])
