"""A stage's training in every process of the run: begun, updated, over."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from opdcore.checkpoints import Saved
from opdcore.contract.recipe import TrainingStage
from opdcore.teachers import following
from opdcore.tuning import Tuning, Update
from opdcore.workspace import Workspace


def begin(work: Workspace, stage: TrainingStage, *, seed: int, resume: Saved | None) -> Tuning:
    """The student under training, as this process has it."""
    return work.processes.everywhere(work, _begin, stage, seed, resume)


def update(work: Workspace, step: int, loss: float) -> Update:
    """One optimizer step after everyone's passes."""
    return work.processes.everywhere(work, _update, step, loss)


def follow(work: Workspace) -> None:
    """Has the teachers that are averages of the student follow it."""
    if following.averages(work.teachers):
        work.processes.everywhere(work, _follow)


def state(work: Workspace) -> dict[str, Tensor]:
    """The optimizer's state by name, whole."""
    return work.processes.everywhere(work, _state)


def finish(work: Workspace) -> None:
    """Leaves a plain model behind."""
    work.processes.everywhere(work, _finish)


def _begin(work: Workspace, stage: TrainingStage, seed: int, resume: Saved | None) -> Tuning:
    tuning = Tuning(work.student.network, stage, seed=seed, resume=resume, mesh=work.processes.mesh)
    work.processes.tuning = tuning
    return tuning


def _update(work: Workspace, step: int, loss: float) -> Update:
    return _tuning(work).update(step, loss)


def _follow(work: Workspace) -> None:
    following.follow(work.teachers, work.student)


def _state(work: Workspace) -> dict[str, Tensor]:
    entries = _tuning(work).state()
    if work.processes.leads:
        return dict(entries)
    deque(entries, maxlen=0)  # Pieces are gathered in all processes, and kept in the first.
    return {}


def _finish(work: Workspace) -> None:
    _tuning(work).finish()
    work.processes.tuning = None


def _tuning(work: Workspace) -> Tuning:
    assert work.processes.tuning is not None, "The stage has not begun to train."
    return work.processes.tuning
