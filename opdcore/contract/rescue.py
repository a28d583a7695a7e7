"""A rescue: what a failing run's verdict is answered with, as a recipe or as what helps instead.

The history is all that a plan knows of a run besides its recipe and verdict; numbers and names only.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.recipe import Recipe
from opdcore.contract.verdicts import Evidence, Verdict

# What helps where training by another recipe does not.
OfferKind = Literal[
    "other_teacher", "reinforce", "align_rendering", "map_tokens", "shared_text", "keep_checkpoint"
]


class Spot(Document):
    """A place in a run: after a step of one of its stages."""

    stage_index: int = Field(ge=0, description="Which stage, counted from 0.")
    step: int = Field(ge=0, description="Steps of that stage done.")


class History(Document):
    """What a run came to, as far as a plan needs it."""

    failing: Spot | None = Field(
        default=None, description="Where the monitor first called it failing; null before a run."
    )
    checkpoints: tuple[Spot, ...] = Field(default=(), description="Checkpoints still kept.")
    best: Spot | None = Field(
        default=None, description="The checkpoint at or before the highest held-out accuracy."
    )
    sound_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Response tokens up to which both sides still agreed; null where all do.",
    )
    parted_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Response token at which both sides parted from the first step on, though they "
        "agreed before it; null where they did not.",
    )
    start_overlap: float | None = Field(
        default=None, ge=0, le=1, description="Mean effective overlap of the first three steps."
    )
    start_entropy_excess: float | None = Field(
        default=None,
        description="The student's mean entropy beyond the teacher's in the same steps, in nats: a student "
        "of another manner is surer of its words than the teacher is, a damaged one is not.",
    )
    best_accuracy: float | None = Field(
        default=None, description="The student's highest held-out accuracy; null where unmeasured."
    )
    teacher_accuracy: float | None = Field(
        default=None, description="The teacher's held-out accuracy; null where unmeasured."
    )
    prompts: int | None = Field(
        default=None, ge=0, description="Train prompts that there are; null where not known."
    )
    demonstrations: bool = Field(
        default=False, description="Whether the train prompts come with responses."
    )
    verifier: bool = Field(default=False, description="Whether responses can be graded.")
    same_rendering: bool = Field(
        default=True, description="Whether both sides render prompts alike."
    )


class Change(Document):
    """One thing that the new recipe does otherwise, and why."""

    path: str = Field(description="Place in the new recipe, such as stages.1.normalisation.")
    before: str | int | float | bool | None = Field(
        description="What it was; null where it was not."
    )
    after: str | int | float | bool | None = Field(description="What it becomes.")
    reason: str = Field(description="Why, in one sentence.")
    evidence: tuple[Evidence, ...] = Field(default=(), description="What the reason rests on.")
    source: str = Field(default="", description="Where it was shown, such as an arXiv number.")


class Offer(Document):
    """What helps where training by another recipe does not."""

    kind: OfferKind = Field(description="What is offered.")
    why: str = Field(description="Why it helps, in one sentence.")


class RescuePlan(Document):
    """The answer to a verdict: a recipe to try, or what helps instead of one."""

    verdict: Verdict = Field(description="What is answered.")
    recipe: Recipe | None = Field(description="What to do; null where training does not help.")
    start: Spot | None = Field(
        default=None,
        description="The run's checkpoint to start from; null: where the run itself started.",
    )
    changes: tuple[Change, ...] = Field(default=(), description="One for each thing changed.")
    expected: str = Field(default="", description="What should be seen if it works.")
    offers: tuple[Offer, ...] = Field(default=(), description="What helps besides or instead.")
    cautions: tuple[str, ...] = Field(default=(), description="Why it may not work.")
