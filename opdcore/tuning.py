"""What a stage changes of its student, and how: which weights, at which rate, and how much they moved.

One object lives as long as the stage. It knows nothing of where gradients come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from opdcore import checkpoints
from opdcore.checkpoints import Saved
from opdcore.contract.errors import EngineFailure
from opdcore.contract.recipe import TrainingStage
from opdcore.gauges import WatchedWeights
from opdcore.models import adapters
from opdcore.models.network import Network
from opdcore.optimizer import AdamW, Decay

# So small a share of changed weights, for so many updates in a row, is worth a warning.
STILL_SHARE = 0.05
STILL_UPDATES = 3


@dataclass(frozen=True)
class Update:
    """One optimizer step; `made` is False where loss or gradient were not finite."""

    made: bool
    grad_norm: float
    learning_rate: float
    changed_share: float

    def told(self) -> dict[str, float]:
        """Metrics of the update, by key of the metric table."""
        return {
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "weights_changed_share": self.changed_share,
        }

    def refusal(self, loss: float, step: int) -> EngineFailure:
        """The error with which a run ends whose update could not be made."""
        return EngineFailure(
            "run.nonfinite",
            f"At step {step} the loss is {loss} and the gradient norm {self.grad_norm}; no update "
            "was made.",
            remedy=f"Start a new run with a learning rate below {self.learning_rate:g} or a longer "
            "warm-up.",
        )


class Tuning:
    """The student under training: full or by adapters, with its optimizer's state."""

    def __init__(
        self,
        network: Network,
        stage: TrainingStage,
        *,
        seed: int,
        resume: Saved | None,
    ) -> None:
        self.network, self.stage = network, stage
        if stage.tuning == "lora":
            adapters.attach(network, rank=stage.lora_rank, alpha=stage.lora_alpha, seed=seed)
        decay = Decay(beta1=stage.beta1, beta2=stage.beta2, weights=stage.weight_decay)
        self.optimizer = AdamW(network.module, decay)
        if resume is not None:
            checkpoints.restore(resume, network.module, self.optimizer)
        self._watched = WatchedWeights(self.optimizer.parameters)
        self._still = 0

    def update(self, step: int, loss: float) -> Update:
        """Clip the gradients and take the step counted from 1, unless something is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.optimizer.parameters, self.stage.max_grad_norm
        ).item()
        made, rate = math.isfinite(loss) and math.isfinite(norm), learning_rate(self.stage, step)
        self._watched.remember()
        if made:
            self.optimizer.step(rate)
        share = self._watched.changed_share()
        self._still = self._still + 1 if made and share < STILL_SHARE else 0
        return Update(made, norm, rate, share)

    def alarm(self) -> str | None:
        """What to tell people when the last updates have hardly changed any weight; once in a row."""
        if self._still != STILL_UPDATES:
            return None
        return (
            f"Less than {STILL_SHARE:.0%} of the weights changed in each of the last {STILL_UPDATES} "
            "updates: the updates are smaller than the weights' precision can hold. Raise the "
            "learning rate, or check that the gradient is not zero."
        )

    def finish(self) -> None:
        """Leave a plain model behind: adapters are merged into the weights that they stand on."""
        if self.stage.tuning == "lora":
            adapters.merge(self.network)


def learning_rate(stage: TrainingStage, step: int) -> float:
    """Learning rate of a step counted from 1: linear warm-up, then the schedule towards 0."""
    peak = stage.peak_learning_rate
    if step <= stage.warmup_steps:
        return peak * step / stage.warmup_steps
    done = (step - stage.warmup_steps - 1) / max(1, stage.steps - stage.warmup_steps)
    factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return peak * factors[stage.schedule]
