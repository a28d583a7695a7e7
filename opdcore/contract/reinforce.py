"""The reinforce stage: the student learns from a verifier's verdicts on what it writes itself.

GRPO (2402.03300) with one update a batch, so that there is nothing to clip: it makes a teacher out of a
model of the student's size. It knows no model, prompt or device.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from opdcore.contract.distill import DistillStage, LengthKnobs, SamplingKnobs
from opdcore.contract.document import Document, again, knob
from opdcore.contract.training import TrainingKnobs

Advantage = Literal["group_mean", "group_normalised"]
Truncated = Literal["wrong", "left_out"]


class GroupKnobs(Document):
    """How much is written, and what a group of siblings teaches."""

    kind: Literal["reinforce"] = "reinforce"
    steps: int = again(LengthKnobs, "steps", 200)
    prompts_per_step: int = again(LengthKnobs, "prompts_per_step", 32)
    rollouts_per_prompt: int = knob(
        8,
        group="length",
        ge=2,
        le=256,
        unit="rollouts",
        help="Responses sampled of each prompt, which are compared with one another. Where all of "
        "them are right, or all wrong, the prompt teaches nothing.",
    )
    advantage: Advantage = knob(
        "group_mean",
        group="objective",
        help="What a response is worth: its reward, 1 if right and 0 if wrong, less the mean of its "
        "prompt's responses. group_normalised divides that by their standard deviation too, which "
        "gives prompts that are nearly always or hardly ever solved more weight than their share "
        "(2503.20783).",
    )
    truncated: Truncated = knob(
        "wrong",
        group="objective",
        help="A response that is cut counts as wrong, which teaches brevity too, or is left out of "
        "its group and of the loss (2503.14476), which does not.",
    )
    initial_kl_weight: float = knob(
        0.0,
        group="objective",
        ge=0,
        le=100,
        level="advanced",
        help="Weight of KL(student || student at the stage's start), over the full vocabulary at every "
        "token of the loss. Takes memory for a third model. 0: none.",
    )


class ReinforceStage(TrainingKnobs, SamplingKnobs, GroupKnobs):
    """GRPO: the student writes, the verifier grades, and what beats its siblings becomes likelier."""

    temperature: float = knob(
        1.0,
        group="sampling",
        gt=0,
        le=2,
        help="Temperature of rollouts, and of the distribution that is trained.",
    )
    evaluate_steps: int = again(DistillStage, "evaluate_steps", 20)

    @property
    def needs_initial(self) -> bool:
        """Whether the student as it was at the stage's start takes part in the loss."""
        return self.initial_kl_weight > 0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        self.refuse_long_warmup(self.steps)
        return self
