"""The recipe: what a run does, as an immutable list of stages. Every knob is declared here, once.

Forms, YAML, the command line, the API and the losses read names, defaults, bounds, units and help
from this module, and from `evaluation` what a run is judged by. It knows no model, prompt or device.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.document import Document, knob
from opdcore.contract.evaluation import Evaluation, Goal
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.soundness import (
    addition_refusal,
    cell_refusal,
    named_refusal,
    reward_refusal,
)

Form = Literal["top_k", "sampled", "full"]
Divergence = Literal["reverse", "forward", "jsd"]
Support = Literal["student", "teacher", "intersection", "union", "symmetric_difference"]
Normalisation = Literal["stop_gradient", "renormalised", "tail_bucket", "unnormalised"]
SampledLoss = Literal["policy_gradient", "k2", "k3"]
TokenMask = Literal["none", "special", "special_and_stop"]
TokenSelection = Literal["all", "entropy", "divergence", "either"]
Tuning = Literal["full", "lora"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "linear", "cosine"]
OnFailing = Literal["continue", "pause", "stop"]


class DistillStage(Document):
    """On-policy distillation: the student writes, the teacher scores every token, the student learns."""

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
    form: Form = knob(
        "top_k",
        group="objective",
        help="What is compared at each token: the k most probable tokens, the sampled token only, "
        "or the full vocabulary.",
    )
    divergence: Divergence = knob(
        "reverse",
        group="objective",
        help="reverse: KL(student || teacher), mode seeking, the usual choice. forward: "
        "KL(teacher || student), mass covering. jsd: the generalised Jensen-Shannon divergence "
        "between the two.",
    )
    jsd_beta: float = knob(
        0.5,
        group="objective",
        gt=0,
        lt=1,
        level="advanced",
        help="Teacher's share of the mixture m that divergence jsd compares both with: beta "
        "KL(teacher || m) + (1 - beta) KL(student || m).",
    )
    k: int = knob(
        16,
        group="objective",
        ge=1,
        le=4096,
        unit="tokens",
        help="Size of the top-k support that is trained on and that alignment is measured on.",
    )
    support: Support = knob(
        "student",
        group="objective",
        level="advanced",
        help="Whose top k: the student's, the teacher's, those in both, those in either, or those "
        "in one of them only, which learns less and is there to show it.",
    )
    normalisation: Normalisation = knob(
        "stop_gradient",
        group="objective",
        level="advanced",
        experimental=("unnormalised",),
        help="How a truncated support is kept unbiased: stop-gradient on the student's log-ratio, "
        "renormalised on the support, or one bucket for the tail. unnormalised does nothing of it "
        "and is biased: it drives probability out of the support until the student collapses.",
    )
    sampled_loss: SampledLoss = knob(
        "policy_gradient",
        group="objective",
        level="advanced",
        experimental=("k2", "k3"),
        help="Loss of form sampled: the policy gradient with the token reward as its advantage. k2 "
        "has the same gradient and another value; the gradient of k3 is that of the forward KL.",
    )
    reward_clamp: float | None = knob(
        None,
        group="objective",
        gt=0,
        le=1000,
        unit="nats",
        level="advanced",
        help="Log-ratios of teacher to student are cut to this size, up and down. Empty: never.",
    )
    reward_power: float = knob(
        0.0,
        group="objective",
        ge=0,
        le=4,
        level="experimental",
        help="Above 0 the token reward is the difference of both probabilities' powers, divided by "
        "the power, which bounds it (2606.17199). At 0 it is the log-ratio.",
    )
    high_entropy_forward_weight: float = knob(
        0.0,
        group="objective",
        ge=0,
        le=10,
        level="advanced",
        help="Weight of the forward KL that is added where the teacher is uncertain (2603.07079), "
        "against a loss of variety. 0: none.",
    )
    high_entropy_nats: float = knob(
        1.0,
        group="objective",
        ge=0,
        le=20,
        unit="nats",
        level="advanced",
        help="The teacher is uncertain where its entropy is at least this.",
    )
    initial_kl_weight: float = knob(
        0.0,
        group="objective",
        ge=0,
        le=100,
        level="advanced",
        help="Weight of KL(student || student at the run's start), over the full vocabulary, which "
        "holds the student near to what it was (2604.08527). Takes memory for a third model.",
    )
    gold_sft_weight: float = knob(
        0.0,
        group="objective",
        ge=0,
        le=100,
        level="advanced",
        help="Weight of the mean negative log-likelihood of the demonstrations that this step's "
        "prompts come with, as `response` in the prompt set (2604.08527). 0: none.",
    )
    extrapolation: float = knob(
        1.0,
        group="objective",
        gt=0,
        le=2,
        level="experimental",
        help="Lambda of G-OPD (2602.12125): the student follows the teacher, moved on by lambda - 1 "
        "times what it adds to the student at the run's start. 1: the teacher itself.",
    )
    token_mask: TokenMask = knob(
        "none",
        group="objective",
        level="advanced",
        help="Tokens of a rollout that are measured and not trained on: none, the student's special "
        "tokens other than its stop tokens, or those too.",
    )
    token_selection: TokenSelection = knob(
        "all",
        group="objective",
        level="experimental",
        help="Which of the other tokens are trained on: all, those where the student's entropy is "
        "high, where its KL to the teacher is, or where either is (2604.14084). The loss stays "
        "divided by all of them.",
    )
    selection_entropy_nats: float = knob(
        0.5,
        group="objective",
        ge=0,
        le=20,
        unit="nats",
        level="experimental",
        help="For token_selection: an entropy of the student from which on a token is chosen.",
    )
    selection_kl_nats: float = knob(
        0.1,
        group="objective",
        ge=0,
        le=100,
        unit="nats",
        level="experimental",
        help="For token_selection: a KL(student || teacher) from which on a token is chosen.",
    )
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
    tuning: Tuning = knob(
        "full",
        group="optimizer",
        help="full: every weight is trained. lora: low-rank adapters on every linear map, merged into "
        "the weights when the stage is over; far less memory for gradients and optimizer. What is no "
        "linear map, such as experts, stays as it is.",
    )
    learning_rate: float = knob(
        1e-6, group="optimizer", gt=0, le=1, help="Peak learning rate of AdamW under full tuning."
    )
    lora_learning_rate: float = knob(
        1e-5,
        group="optimizer",
        gt=0,
        le=1,
        level="advanced",
        help="Peak learning rate under lora, about ten times that of full tuning.",
    )
    lora_rank: int = knob(
        32, group="optimizer", ge=1, le=1024, level="advanced", help="Rank of each adapter."
    )
    lora_alpha: float = knob(
        64.0,
        group="optimizer",
        gt=0,
        le=4096,
        level="advanced",
        help="An adapter's update is lora_alpha / lora_rank times the product of its two factors.",
    )
    warmup_steps: int = knob(
        0,
        group="optimizer",
        ge=0,
        le=1_000_000,
        unit="steps",
        help="Steps over which the learning rate rises from 0.",
    )
    schedule: Schedule = knob(
        "constant", group="optimizer", help="Course of the learning rate after the warm-up."
    )
    weight_decay: float = knob(
        0.01, group="optimizer", ge=0, le=1, level="advanced", help="AdamW's decoupled decay."
    )
    beta1: float = knob(
        0.9, group="optimizer", ge=0, lt=1, level="advanced", help="AdamW's beta 1."
    )
    beta2: float = knob(
        0.999, group="optimizer", ge=0, lt=1, level="advanced", help="AdamW's beta 2."
    )
    max_grad_norm: float = knob(
        1.0,
        group="optimizer",
        gt=0,
        le=1e6,
        level="advanced",
        help="The gradient is scaled down to this norm.",
    )
    precision: Precision = knob(
        "float32",
        group="optimizer",
        level="advanced",
        help="Precision in which both models' layers are computed when rollouts are scored. With bfloat16, "
        "for GPUs, weights, gradients, optimizer, logits and losses stay float32.",
    )
    micro_batch_tokens: int = knob(
        16_384,
        group="optimizer",
        ge=16,
        le=16_777_216,
        unit="tokens",
        level="advanced",
        help="Tokens, padding included, in one forward and backward pass. Memory, not the result, "
        "depends on it.",
    )
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
    checkpoint_steps: int = knob(
        20,
        group="cadence",
        ge=1,
        le=1_000_000,
        unit="steps",
        help="Write a checkpoint to resume from every so many steps.",
    )
    keep_checkpoints: int = knob(
        2,
        group="cadence",
        ge=1,
        le=100,
        unit="checkpoints",
        level="advanced",
        help="Resume states kept, newest first; a damaged newest falls back on the one before.",
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
        "checkpoint and pause, or write one and stop.",
    )

    @property
    def needs_initial(self) -> bool:
        """Whether the student as it was at the run's start takes part in the loss."""
        return self.initial_kl_weight > 0 or self.extrapolation != 1

    @field_validator("form", "normalisation", "sampled_loss", mode="before")
    @classmethod
    def _known_to_be_unsound(cls, value: object, info: ValidationInfo) -> object:
        refusal = named_refusal(str(info.field_name), value)
        if refusal:
            raise ValueError(refusal)
        return value

    @property
    def peak_learning_rate(self) -> float:
        """That of the kind of tuning chosen."""
        return self.lora_learning_rate if self.tuning == "lora" else self.learning_rate

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refusal = (
            cell_refusal(
                form=self.form,
                divergence=self.divergence,
                normalisation=self.normalisation,
                k=self.k,
            )
            or reward_refusal(
                form=self.form,
                divergence=self.divergence,
                normalisation=self.normalisation,
                sampled_loss=self.sampled_loss,
                reward_clamp=self.reward_clamp,
                reward_power=self.reward_power,
            )
            or addition_refusal(
                divergence=self.divergence,
                extrapolation=self.extrapolation,
                high_entropy_forward_weight=self.high_entropy_forward_weight,
            )
        )
        if refusal:
            raise ValueError(refusal)
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} is more than the {self.steps} steps; lower it"
            )
        return self


class EvaluateStage(Document):
    """Answers and grades the held-out prompts with the student as it stands."""

    kind: Literal["evaluate"] = "evaluate"


Stage = Annotated[
    DistillStage | ColdStartStage | EvaluateStage | DiagnoseStage, Field(discriminator="kind")
]


class Recipe(Document):
    """An ordered list of stages with a goal: all that decides what is learned, but the models and prompts."""

    version: Literal[1] = Field(default=1, description="Version of this format.")
    name: str = Field(min_length=1, max_length=120, description="What people call it.")
    description: str = Field(default="", max_length=2000, description="What it is for.")
    goal: Goal = Field(default_factory=Goal, description="What the run is for.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="How it is graded.")
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=32, description="What is done.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything random.")

    @property
    def steps_by_stage(self) -> tuple[int, ...]:
        """Optimizer steps of each stage; 0 where a stage trains nothing."""
        return tuple(s.steps if s.kind in ("distill", "cold_start") else 0 for s in self.stages)
