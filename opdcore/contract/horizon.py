"""Knobs of the horizon: how deep into a response the student writes and learns.

The teacher's reward decays with depth (2604.13016, 6.1), so late tokens may be taught by noise.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from opdcore.contract.document import Document, knob


class HorizonKnobs(Document):
    """Which positions of a rollout are trained on, how much, and how long rollouts may become."""

    loss_prefix_tokens: int | None = knob(
        None,
        group="horizon",
        ge=1,
        le=131_072,
        unit="tokens",
        help="Only so many tokens from a response's start are trained on (2602.15260); the rest is "
        "measured. Empty: all. To save their cost as well, lower max_response_tokens instead.",
    )
    depth_half_life_tokens: int | None = knob(
        None,
        group="horizon",
        ge=1,
        le=1_000_000,
        unit="tokens",
        level="advanced",
        help="A token's weight in the loss halves every so many tokens of depth. Empty: all weigh "
        "the same. No paper measures it by itself.",
    )
    curriculum_start_tokens: int | None = knob(
        None,
        group="horizon",
        ge=1,
        le=131_072,
        unit="tokens",
        level="advanced",
        help="Rollouts are cut at this length at first; it grows by a quarter, up to "
        "max_response_tokens, while overlap holds in their last chunk (after 2605.16826). Empty: no "
        "curriculum.",
    )
    mask_late_chunks: bool = knob(
        default=False,
        group="horizon",
        level="advanced",
        help="Position chunks from the first one on in which overlap does not hold are measured and "
        "not trained on.",
    )
    late_overlap: float = knob(
        0.6,
        group="horizon",
        ge=0,
        le=1,
        level="advanced",
        help="Overlap holds in a chunk where its effective overlap was at least this in most of the "
        "last five steps; for the curriculum and for mask_late_chunks.",
    )

    @property
    def horizon_adapts(self) -> bool:
        """Whether what is written or trained depends on the steps before."""
        return self.curriculum_start_tokens is not None or self.mask_late_chunks

    @model_validator(mode="after")
    def _short_enough(self) -> Self:
        longest = getattr(self, "max_response_tokens", None)
        for name in ("loss_prefix_tokens", "curriculum_start_tokens"):
            tokens = getattr(self, name)
            if longest is not None and tokens is not None and tokens > longest:
                raise ValueError(
                    f"{name}: {tokens} is more than max_response_tokens, {longest}; lower it"
                )
        return self
