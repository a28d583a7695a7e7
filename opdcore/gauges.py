"""Gauges of a training step: seconds by phase, and the share of weights that an update changed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from opdcore.device import synchronise

# Weights watched: enough for three digits, cheap to copy.
WATCHED_WEIGHTS = 1_000_000


class Clock:
    """Seconds of each phase of a step, measured on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Ends a phase: what passed since the last one is its time."""
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[phase], self.last = now - self.last, now
        self.seconds["step_seconds"] = now - self.start


class WatchedWeights:
    """A fixed sample of the weights, compared before and after an update."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.stride = max(1, sum(p.numel() for p in self.parameters) // WATCHED_WEIGHTS)
        self.before: list[Tensor] = []

    def remember(self) -> None:
        """Takes the sample before an update."""
        self.before = self._sample()

    def changed_share(self) -> float:
        """Share of the sample whose bits differ from the remembered ones."""
        after = self._sample()
        changed = sum(int((a != b).sum()) for a, b in zip(after, self.before, strict=True))
        return changed / sum(a.numel() for a in after)

    def _sample(self) -> list[Tensor]:
        return [p.detach().reshape(-1)[:: self.stride].clone() for p in self.parameters]
