"""The horizon of a distill stage: how long rollouts may be now, and how much each position weighs.

What adapts is a fold over the steps' positions, so that a checkpoint can hold it. It knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opdcore.contract.distill import DistillStage
from opdcore.contract.positions import Positions

# So many steps decide, and the cap grows by so much at a time.
STEPS = 5
GROWTH = 1.25
OVERLAP = "effective_overlap"


class Horizon:
    """Follows how deep overlap holds, step by step."""

    def __init__(self, stage: DistillStage) -> None:
        self.stage = stage
        self.longest = stage.curriculum_start_tokens or stage.max_response_tokens
        self._fronts: list[int | None] = []

    @property
    def late_from(self) -> int | None:
        """The first position of the chunks that are masked; None where none is."""
        if not self.stage.mask_late_chunks or len(self._fronts) < STEPS:
            return None
        fronts = sorted(math.inf if front is None else front for front in self._fronts)
        middle = fronts[STEPS // 2]
        return None if math.isinf(middle) else int(middle)

    def weights(self, positions: Tensor) -> Tensor | None:
        """Weights in the loss of tokens at these positions (N,); None where all weigh 1."""
        stage, weights = self.stage, torch.ones(len(positions))
        if stage.depth_half_life_tokens is not None:
            weights = 0.5 ** (positions / stage.depth_half_life_tokens)
        ends = [end for end in (stage.loss_prefix_tokens, self.late_from) if end is not None]
        if ends:
            weights = weights * (positions < min(ends))
        return weights if ends or stage.depth_half_life_tokens is not None else None

    def observe(self, positions: Positions) -> None:
        """Takes a step's overlap by position in, and lets the cap grow where it has held."""
        if not self.stage.horizon_adapts:
            return
        self._fronts = [*self._fronts, _front(positions, self.stage.late_overlap)][-STEPS:]
        held = sum(front is None for front in self._fronts)
        if self.longest < self.stage.max_response_tokens and held > STEPS // 2:
            self.longest = min(math.ceil(GROWTH * self.longest), self.stage.max_response_tokens)
            self._fronts = []

    def told(self) -> dict[str, float]:
        """What has changed by itself, by key of the metric table."""
        values: dict[str, float] = {}
        if self.stage.curriculum_start_tokens is not None:
            values["response_cap_tokens"] = float(self.longest)
        if self.stage.mask_late_chunks:
            values["trained_up_to_tokens"] = float(
                self.longest if self.late_from is None else self.late_from
            )
        return values

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"longest": self.longest, "fronts": self._fronts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint kept."""
        self.longest, self._fronts = state["longest"], list(state["fronts"])


def _front(positions: Positions, least: float) -> int | None:
    """Where the first reached chunk begins in which overlap is too low; None where it holds in all.

    The first chunk is always learned from: without it nothing would ever change.
    """
    for start, overlap in zip(positions.edges, positions.reached(OVERLAP), strict=False):
        if overlap is not None and overlap < least:
            return max(start, positions.edges[1])
    return None
