"""How responses are drawn, whoever draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from opdcore.contract.distill import LOOP
from opdcore.contract.training import Precision
from opdcore.inspection import ModelCard
from opdcore.rendering import Renderer
from opdcore.rollouts.rollout import Rollout


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; ids at or above `vocabulary` are never drawn.

    One whose end repeats itself `stop_repeating` times is cut there; 0: none is.
    """

    max_tokens: int
    temperature: float
    top_p: float
    vocabulary: int
    stop_ids: frozenset[int]
    precision: Precision = "float32"
    stop_repeating: int = LOOP


class Responder(Protocol):
    """A model that draws its own responses, such as one behind a server."""

    @property
    def renderer(self) -> Renderer: ...
    @property
    def card(self) -> ModelCard: ...

    def respond(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """One rollout of each prompt's ids, in the prompts' order."""
        ...
