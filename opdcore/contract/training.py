"""Knobs of every stage that trains weights: what is tuned, by which optimizer, and what is kept of it.

A stage that usually wants another default declares the knob again. It knows no objective.
"""

from __future__ import annotations

from typing import Literal

from opdcore.contract.document import Document, knob

Tuning = Literal["full", "lora"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "linear", "cosine"]
Recomputing = Literal["auto", "always", "never"]
# Tokens of a text from which on memory counts for more than time.
LONG_TEXT = 4096


class TrainingKnobs(Document):
    """AdamW over all weights or over adapters, and the checkpoints on the way."""

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
    gradient_checkpointing: Recomputing = knob(
        "auto",
        group="optimizer",
        level="advanced",
        help="Whether a backward pass computes each layer anew from its input instead of keeping all that "
        "it computed: far less memory for a third more time. auto: where a text has more than "
        f"{LONG_TEXT:,} tokens.",
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

    @property
    def peak_learning_rate(self) -> float:
        """That of the kind of tuning chosen."""
        return self.lora_learning_rate if self.tuning == "lora" else self.learning_rate

    def recomputes(self, tokens: int) -> bool:
        """Whether texts as long as this are computed anew in the backward pass."""
        if self.gradient_checkpointing == "auto":
            return tokens > LONG_TEXT
        return self.gradient_checkpointing == "always"

    def refuse_long_warmup(self, steps: int) -> None:
        """Raises ValueError where the warm-up is longer than the stage."""
        if self.warmup_steps > steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} is more than the {steps} steps; lower it"
            )
