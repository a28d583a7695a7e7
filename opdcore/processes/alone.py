"""What a stage asks of the processes of its run, and the run that has one alone.

Whatever changes a model is done everywhere, passes and rollouts are divided, and all else is done by the
first process alone. What is asked is a function of a module and its arguments, since it may travel. It
knows no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch.distributed.device_mesh import DeviceMesh

from opdcore.models import LoadedModel
from opdcore.rollouts import Responder, Rollout, Sampling, sample
from opdcore.tuning import Tuning

W = TypeVar("W")
T = TypeVar("T")
R = TypeVar("R")


class Processes(Protocol):
    """The processes of a run, as one of them sees them; `tuning` is of the student, while it is trained."""

    tuning: Tuning | None

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this is the first one, which asks the others."""
        ...

    @property
    def mesh(self) -> DeviceMesh | None:
        """Their devices, over which a trained network is cut; None where there is one."""
        ...

    def meet(self, work: Any) -> None:  # noqa: ANN401 - the caller's workspace
        """Wait until all processes are ready to work; raises what kept one of them from it."""
        ...

    def everywhere(self, work: W, do: Callable[..., R], *args: Any) -> R:  # noqa: ANN401 - do's
        """Do `do(work, *args)` in every process, each with its own work; what came of it here."""
        ...

    def divide(
        self,
        work: W,
        do: Callable[[W, T], R],
        tasks: Sequence[T],
        *,
        sizes: Sequence[int],
        trains: bool,
    ) -> list[R]:
        """Do `do(work, task)` of each task in one process or another; what came of them, in order.

        `trains`: each task is one pass back through the student under training.
        """
        ...

    def sample(
        self,
        model: LoadedModel | Responder,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[Rollout]:
        """`rollouts.sample`, its rows divided where every process has the model."""
        ...


class Alone:
    """A run in one process, which does everything itself."""

    count = 1
    leads = True
    mesh = None

    def __init__(self) -> None:
        self.tuning: Tuning | None = None

    def meet(self, work: Any) -> None:  # noqa: ANN401 - the interface's
        """There is nobody to wait for."""

    def everywhere(self, work: W, do: Callable[..., R], *args: Any) -> R:  # noqa: ANN401 - do's
        return do(work, *args)

    def divide(
        self,
        work: W,
        do: Callable[[W, T], R],
        tasks: Sequence[T],
        *,
        sizes: Sequence[int],  # noqa: ARG002 - the interface's
        trains: bool,  # noqa: ARG002 - the interface's
    ) -> list[R]:
        return [do(work, task) for task in tasks]

    def sample(
        self,
        model: LoadedModel | Responder,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[Rollout]:
        return sample(model, prompts, sampling=sampling, generator=generator)
