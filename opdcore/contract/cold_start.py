"""The cold start: off-policy fine-tuning on responses that somebody else wrote, before distillation.

It brings a student to its teacher's way of thinking (2604.13016, 5.1); it cannot bring knowledge that
the teacher lacks. It knows no model, prompt or device.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from opdcore.contract.document import Document, again, knob
from opdcore.contract.training import Schedule, TrainingKnobs

Source = Literal["teacher", "demonstrations", "writer"]


class CollectionKnobs(Document):
    """Which responses are learned, and how they come to be."""

    kind: Literal["cold_start"] = "cold_start"
    source: Source = knob(
        "teacher",
        group="length",
        help="Whose responses are learned: the teacher's, sampled now, those that the prompts come "
        "with, or another model's (writer), which the run then names.",
    )
    prompts: int = knob(
        2048,
        group="length",
        ge=1,
        le=10_000_000,
        unit="prompts",
        help="Prompts whose responses are learned, one each; all of them where there are fewer.",
    )
    held_out_prompts: int = knob(
        64,
        group="length",
        ge=0,
        le=65_536,
        unit="prompts",
        level="advanced",
        help="Further prompts whose responses are never learned: how likely the student finds them is "
        "told before and after.",
    )
    steps: int = knob(64, group="length", ge=1, le=1_000_000, unit="steps", help="Optimizer steps.")
    responses_per_step: int = knob(
        32,
        group="length",
        ge=1,
        le=65_536,
        unit="responses",
        help="Responses in each step; once all were learned they come again in another order.",
    )
    temperature: float = knob(
        0.7, group="sampling", gt=0, le=10, help="Sampling temperature of the responses."
    )
    sampling_top_p: float = knob(
        0.95, group="sampling", gt=0, le=1, level="advanced", help="Nucleus of the responses."
    )
    max_prompt_tokens: int = knob(
        1024,
        group="sampling",
        ge=1,
        le=131_072,
        unit="tokens",
        level="advanced",
        help="A longer prompt is refused before the run starts.",
    )
    max_response_tokens: int = knob(
        7168,
        group="sampling",
        ge=1,
        le=131_072,
        unit="tokens",
        help="A response that reaches it is cut, and a cut one is not learned.",
    )
    retries: int = knob(
        3,
        group="sampling",
        ge=0,
        le=100,
        unit="times",
        level="advanced",
        help="How often a prompt is asked again whose response was cut, repeats itself or is wrong "
        "where only right ones are wanted.",
    )
    only_correct: bool = knob(
        default=False,
        group="sampling",
        help="Learn only responses that the verifier finds right. The paper that the cold start comes "
        "from does not filter by that.",
    )


class ColdStartStage(TrainingKnobs, CollectionKnobs):
    """Fine-tuning on the teacher's responses: brings the student to its manner before distillation."""

    learning_rate: float = again(TrainingKnobs, "learning_rate", 1e-5)
    lora_learning_rate: float = again(TrainingKnobs, "lora_learning_rate", 1e-4)
    warmup_steps: int = again(TrainingKnobs, "warmup_steps", 3)
    schedule: Schedule = again(TrainingKnobs, "schedule", "cosine")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        self.refuse_long_warmup(self.steps)
        return self
