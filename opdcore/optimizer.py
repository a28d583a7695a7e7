"""AdamW (arXiv 1711.05101) over the parameters that ask for gradients, by torch's fused kernel.

torch's optimizer classes import its compiler, seconds of CPU time, with the first step that any of them
makes; its functional form does not. It knows no schedule and no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


@dataclass(frozen=True)
class Decay:
    """How fast AdamW forgets: gradients (beta 1), their squares (beta 2), and the weights themselves."""

    beta1: float
    beta2: float
    weights: float


class AdamW:
    """State by parameter: the two moving averages and the number of updates."""

    def __init__(self, model: nn.Module, decay: Decay) -> None:
        self.decay = decay
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def forget_gradients(self) -> None:
        """Drop every gradient, so that the next backward pass starts from none."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient."""
        updated = [p for p in self.parameters if p.grad is not None]
        states = [self._state(parameter) for parameter in updated]
        adamw(
            updated,
            [p.grad for p in updated],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=self.decay.beta1,
            beta2=self.decay.beta2,
            lr=learning_rate,
            weight_decay=self.decay.weights,
            eps=1e-8,
            maximize=False,
        )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]
