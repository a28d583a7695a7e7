"""Knobs of the objective: what is compared at each token, how, and what is added to it.

Every combination that is known to be unsound is refused here. It knows no model and no other knob.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ValidationInfo, field_validator, model_validator

from opdcore.contract.document import Document, knob
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


class ObjectiveKnobs(Document):
    """The loss of on-policy distillation, token by token."""

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
        help="Weight of KL(student || student at the stage's start), over the full vocabulary, which "
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
        "times what it adds to the student at the stage's start. 1: the teacher itself.",
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

    @property
    def needs_initial(self) -> bool:
        """Whether the student as it was at the stage's start takes part in the loss."""
        return self.initial_kl_weight > 0 or self.extrapolation != 1

    @field_validator("form", "normalisation", "sampled_loss", mode="before")
    @classmethod
    def _known_to_be_unsound(cls, value: object, info: ValidationInfo) -> object:
        refusal = named_refusal(str(info.field_name), value)
        if refusal:
            raise ValueError(refusal)
        return value

    @model_validator(mode="after")
    def _sound_objective(self) -> Self:
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
        return self
