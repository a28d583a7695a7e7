"""What a stage changes of its student, and how: which weights, at which rate, and how much they moved.

One object lives as long as the stage. It knows nothing of where gradients come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from opdcore import checkpoints
from opdcore.checkpoints import Saved
from opdcore.contract.errors import EngineFailure
from opdcore.contract.recipe import TrainingStage
from opdcore.gauges import WatchedWeights
from opdcore.models import adapters
from opdcore.models.network import Network
from opdcore.optimizer import AdamW, Decay

if TYPE_CHECKING:  # It imports FSDP, which a run in one process does without.
    from opdcore.models.sharded import ShardedNetwork

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
    """The student under training: full or by adapters, with its optimizer's state.

    Where the processes of the run have a `mesh` of devices, `pieces` is the network that passes train,
    cut among them, and each update is gathered into the whole one; in one process it is None.
    """

    def __init__(
        self,
        network: Network,
        stage: TrainingStage,
        *,
        seed: int,
        resume: Saved | None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.network, self.stage = network, stage
        if stage.tuning == "lora":
            adapters.attach(network, rank=stage.lora_rank, alpha=stage.lora_alpha, seed=seed)
        if resume is not None:
            checkpoints.restore_weights(resume.folder, network.module)
        self.pieces = None if mesh is None else _cut(network, mesh)
        self.trained = self.pieces or network
        decay = Decay(beta1=stage.beta1, beta2=stage.beta2, weights=stage.weight_decay)
        self.optimizer = AdamW(self.trained.module, decay)
        if resume is not None:
            checkpoints.restore_optimizer(resume, self.trained.module, self.optimizer)
        self._watched = WatchedWeights([p for p in network.module.parameters() if p.requires_grad])
        self._still = 0

    def update(self, step: int, loss: float) -> Update:
        """Clip the gradients and take the step counted from 1, unless something is not finite."""
        norm = _whole(
            torch.nn.utils.clip_grad_norm_(self.optimizer.parameters, self.stage.max_grad_norm)
        ).item()
        made, rate = math.isfinite(loss) and math.isfinite(norm), learning_rate(self.stage, step)
        self._watched.remember()
        if made:
            self.optimizer.step(rate)
            self._spread()
        share = self._watched.changed_share()
        self._still = self._still + 1 if made and share < STILL_SHARE else 0
        return Update(made, norm, rate, share)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's state by name; of pieces all processes must ask for the whole at once."""
        named = checkpoints.optimizer_tensors(self.trained.module, self.optimizer)
        for name, tensor in named.items():
            yield name, tensor if self.pieces is None else _whole(tensor).cpu()

    def idle(self, device: torch.device) -> None:
        """Take part in a pass of the other processes that adds nothing here."""
        assert self.pieces is not None
        self.pieces.idle(device)

    def _spread(self) -> None:
        if self.pieces is not None:
            self.pieces.gather()
            self.optimizer.forget_gradients()

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


def _cut(network: Network, mesh: DeviceMesh) -> ShardedNetwork:
    from opdcore.models.sharded import ShardedNetwork

    return ShardedNetwork(network, mesh)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that lies in pieces among the processes, gathered; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
