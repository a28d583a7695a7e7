"""What a stage compares its student with: the student as it was when the stage was entered."""

from __future__ import annotations

from pathlib import Path

from opdcore import checkpoints
from opdcore.checkpoints import Saved
from opdcore.contract.distill import DistillStage
from opdcore.contract.reinforce import ReinforceStage
from opdcore.teachers import following
from opdcore.workspace import Workspace


def anchor(
    stage: DistillStage | ReinforceStage, work: Workspace, stage_index: int, resume: Saved | None
) -> None:
    """Where an earlier stage has trained the student, `initial` is what it has left behind.

    A teacher that is an average of the student begins with it.
    """
    work.processes.everywhere(work, _enter, resume)
    if work.initial is None or not stage.needs_initial:
        return
    if any(work.job.recipe.steps_by_stage[:stage_index]):
        entered = checkpoints.enter(
            work.run_dir / checkpoints.STARTS,
            work.student.model,
            stage_index=stage_index,
            resumed=resume is not None,
        )
        work.processes.everywhere(work, _restore, entered)


def _enter(work: Workspace, resume: Saved | None) -> None:
    following.enter(work.teachers, work.student, resume)


def _restore(work: Workspace, entered: Path) -> None:
    assert work.initial is not None
    checkpoints.restore_weights(entered, work.initial.model)
