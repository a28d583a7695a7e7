"""The distill stage: on-policy distillation, every knob of it. It knows no model, prompt or device."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from opdcore.contract.document import Document, knob
from opdcore.contract.horizon import HorizonKnobs
from opdcore.contract.objective import ObjectiveKnobs
from opdcore.contract.soundness import served_refusal
from opdcore.contract.training import Precision, TrainingKnobs

OnFailing = Literal["continue", "pause", "stop", "rescue"]


class LengthKnobs(Document):
    """How much is written and learned."""

    kind: Literal["distill"] = "distill"
    steps: int = knob(
        200, group="length", ge=1, le=1_000_000, unit="steps", help="Optimizer steps."
    )
    prompts_per_step: int = knob(
        64, group="length", ge=1, le=65_536, unit="prompts", help="Prompts answered in each step."
    )
    rollouts_per_prompt: int = knob(
        4, group="length", ge=1, le=256, unit="rollouts", help="Responses sampled of each prompt."
    )


# Times that the end of a response is repeated when it is given up as a loop.
LOOP = 128
FEWEST_REPEATS = 8


class SamplingKnobs(Document):
    """How the student writes."""

    temperature: float = knob(
        1.0,
        group="sampling",
        gt=0,
        le=2,
        help="Temperature of rollouts; student and teacher are compared at the same temperature.",
    )
    sampling_top_p: float = knob(
        1.0,
        group="sampling",
        gt=0,
        le=1,
        level="advanced",
        help="Nucleus of rollouts; below 1 the rollouts are slightly off-policy.",
    )
    sampling_precision: Precision = knob(
        "float32",
        group="sampling",
        level="advanced",
        help="Precision of the layers and their cache while the student writes. bfloat16 halves the cache "
        "and is faster where the processor computes in it; the rollouts then come from a slightly "
        "other student, by as much as sampler_logprob_difference shows.",
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
        help="A rollout that reaches it is cut and counted as truncated.",
    )
    stop_repeating: int = knob(
        LOOP,
        group="sampling",
        ge=0,
        le=131_072,
        unit="times",
        level="advanced",
        help="A rollout whose last 1 to 32 tokens were repeated so often in a row has collapsed: it is cut "
        "there, and counted as truncated and as collapsed. 0: never; else at least 8.",
    )

    @field_validator("stop_repeating")
    @classmethod
    def _is_a_loop(cls, times: int) -> int:
        if 0 < times < FEWEST_REPEATS:
            raise ValueError(
                f"{times} repetitions are no loop; give {FEWEST_REPEATS} or more, or 0"
            )
        return times


class DistillStage(TrainingKnobs, HorizonKnobs, SamplingKnobs, ObjectiveKnobs, LengthKnobs):
    """On-policy distillation: the student writes, the teacher scores every token, the student learns."""

    position_chunk_tokens: int | None = knob(
        None,
        group="cadence",
        ge=1,
        le=131_072,
        unit="tokens",
        level="advanced",
        help="Width of the position chunks that metrics are also reported by. Empty: a quarter of "
        "the longest response.",
    )
    evaluate_steps: int = knob(
        20,
        group="cadence",
        ge=0,
        le=1_000_000,
        unit="steps",
        help="Evaluate every so many steps; 0 only before and after.",
    )
    trace_steps: int = knob(
        10,
        group="cadence",
        ge=1,
        le=1_000_000,
        unit="steps",
        level="advanced",
        help="Keep rollouts with all their token values every so many steps, and at the first and "
        "the last.",
    )
    trace_rollouts: int = knob(
        8,
        group="cadence",
        ge=1,
        le=1024,
        unit="rollouts",
        level="advanced",
        help="How many rollouts such a step keeps.",
    )

    on_failing: OnFailing = knob(
        "continue",
        group="cadence",
        help="What the run does once the monitor calls it failing: go on and say so, write a "
        "checkpoint and pause, write one and stop, or stop and let the application launch the "
        "rescue that fits the verdict.",
    )
    rescues: int = knob(
        1,
        group="cadence",
        ge=1,
        le=10,
        unit="rescues",
        level="advanced",
        help="For on_failing rescue: how many rescues may follow one another unattended.",
    )

    def told_refusal(self, *, student_top_k: bool) -> str | None:
        """Why it cannot learn from a teacher that tells its top k alone, or the student's too."""
        return served_refusal(
            form=self.form,
            support=self.support,
            temperature=self.temperature,
            extrapolation=self.extrapolation,
            token_selection=self.token_selection,
            high_entropy_forward_weight=self.high_entropy_forward_weight,
            student_top_k=student_top_k,
        )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        self.refuse_long_warmup(self.steps)
        return self
