"""A run in several processes: the first one leads, the others do their part of what it asks.

The leader runs the stages, and it alone grades, writes files and tells events. What it asks travels as a
function and its arguments; each process does it with a workspace of its own. It knows no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from opdcore.contract.job import Job
from opdcore.models import LoadedModel
from opdcore.processes import launched
from opdcore.processes.crew import Crew
from opdcore.processes.group import Group
from opdcore.rollouts import Responder, Rollout, Sampling, sample, torch_sampler
from opdcore.tuning import Tuning

W = TypeVar("W")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Place:
    """A process among the others: its number, how many there are, its device, and where they meet.

    `meeting` is None where a launcher started them, which tells where.
    """

    rank: int
    count: int
    device: torch.device
    meeting: Path | None


class Several:
    """The processes of a run as one of them sees them; only the leader has a crew and asks."""

    def __init__(self, place: Place, crew: Crew | None = None) -> None:
        self.place, self.tuning = place, None
        self._crew = crew
        self._group: Group | None = None
        self._work: Work | None = None

    tuning: Tuning | None

    @property
    def count(self) -> int:
        return self.place.count

    @property
    def leads(self) -> bool:
        return self._crew is not None

    @property
    def mesh(self) -> DeviceMesh:
        return self.group.mesh

    @property
    def group(self) -> Group:
        """The processes as they talk to each other, once they have met."""
        assert self._group is not None
        return self._group

    def meet(self, work: Work) -> None:
        """Wait until all processes are here; raises what kept one of them from it."""
        place, self._work = self.place, work
        if self._crew is not None:
            self._crew.await_ready()
        self._group = Group(place.meeting, rank=place.rank, count=place.count, device=place.device)
        if self._crew is not None:
            self._crew.led_by(self._group)

    def everywhere(self, work: W, do: Callable[..., R], *args: Any) -> R:  # noqa: ANN401 - do's
        assert self._crew is not None, "Only the first process asks the others for anything."
        with self._crew.watched():
            self.group.tell((do, args))
            return do(work, *args)

    def divide(
        self,
        work: W,
        do: Callable[[W, T], R],
        tasks: Sequence[T],
        *,
        sizes: Sequence[int],
        trains: bool,
    ) -> list[R]:
        if trains and self.tuning is None:  # The gradient is looked at and nothing learns from it.
            return [do(work, task) for task in tasks]
        shares = dealt(sizes, self.count)
        return self.everywhere(work, _done, do, tasks, shares, trains)

    def sample(
        self,
        model: LoadedModel | Responder,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[Rollout]:
        work = self._work
        number = None if work is None else _number(model, work.models)
        if work is None or number is None:
            return sample(model, prompts, sampling=sampling, generator=generator)
        asked = _Asked(number, prompts, sampling, generator.get_state())
        spans = _spans(len(prompts), self.count)
        parts = self.everywhere(work, _sampled, asked, spans)
        return [rollout for part in parts for rollout in part]

    def serve(self, work: Work) -> None:
        """Do whatever the leader asks until it says that nothing is left."""
        while (order := self.group.hear()) is not None:
            do, args = order
            do(work, *args)
        self.group.leave()


@contextmanager
def lead(job: Job, run_dir: Path, *, device: torch.device, count: int) -> Iterator[Several]:
    """Start the run's other processes, unless a launcher has; they end when this context does."""
    with TemporaryDirectory(prefix="stillroom-") as folder:
        meeting = None if launched.count() > 1 else Path(folder) / "meeting"
        crew = Crew(job, run_dir, count=count, meeting=meeting)
        try:
            yield Several(Place(0, count, device, meeting), crew)
        finally:
            crew.end()


class Work(Protocol):
    """What each process does its part with."""

    @property
    def processes(self) -> Any: ...  # noqa: ANN401 - Processes, of which only Several is meant here

    @property
    def models(self) -> Sequence[LoadedModel | Responder]:
        """The student and its teachers, in the same order everywhere."""
        ...


@dataclass(frozen=True)
class _Asked:
    """Rollouts that are asked of a model, by its number; `drawing` is a generator's state."""

    model: int
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    drawing: Tensor


def dealt(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Task numbers by process: the largest first, each to whoever has the least so far."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for task in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        least = loads.index(min(loads))
        shares[least].append(task)
        loads[least] += sizes[task]
    return shares


def _done(
    work: Work,
    do: Callable[[Work, T], R],
    tasks: Sequence[T],
    shares: Sequence[Sequence[int]],
    trains: bool,  # noqa: FBT001 - it travels
) -> list[R]:
    """This process' share of the tasks; what came of all of them, for the leader.

    FSDP sums gradients in every pass back, so all processes make as many passes.
    """
    group: Group = work.processes.group
    found = {task: do(work, tasks[task]) for task in shares[group.rank]}
    if trains:
        for _ in range(max(map(len, shares)) - len(found)):
            work.processes.tuning.idle(group.device)
    every = {task: one for part in group.collect(found) for task, one in part.items()}
    return [every[task] for task in sorted(every)]


def _sampled(work: Work, asked: _Asked, spans: Sequence[range]) -> list[list[Rollout]]:
    """The rollouts of this process' rows; all of them by process, for the leader."""
    group: Group = work.processes.group
    generator = torch.Generator()
    generator.set_state(asked.drawing)
    model = work.models[asked.model]
    assert isinstance(model, LoadedModel)
    rollouts = torch_sampler.sample(
        model,
        asked.prompts,
        sampling=asked.sampling,
        generator=generator,
        among=spans[group.rank],
    )
    return group.collect(rollouts)


def _number(
    model: LoadedModel | Responder, models: Sequence[LoadedModel | Responder]
) -> int | None:
    """Its number where it is in every process; None where a server has it."""
    if not isinstance(model, LoadedModel):
        return None
    return next((number for number, one in enumerate(models) if one is model), None)


def _spans(rows: int, count: int) -> list[range]:
    """Rows in as many runs of nearly one length, so that siblings of a prompt mostly stay together."""
    ends = [rows * place // count for place in range(count + 1)]
    return [range(start, end) for start, end in pairwise(ends)]
