"""A training stage's evaluations on their way: of the teacher once, of the student when it is due."""

from __future__ import annotations

from collections.abc import Iterator

from opdcore.contract.distill import DistillStage
from opdcore.contract.events import Payload
from opdcore.contract.reinforce import ReinforceStage
from opdcore.workspace import Workspace


def measure(
    stage: DistillStage | ReinforceStage, work: Workspace, stage_index: int, step: int
) -> Iterator[Payload]:
    """What the evaluator says after a step; nothing where nothing can be graded."""
    if work.evaluator is None:
        return
    # After the first step, so that the first point is drawn before the teacher is asked.
    yield from work.evaluator.teacher(work.teachers)
    if step == stage.steps or (stage.evaluate_steps and step % stage.evaluate_steps == 0):
        yield from work.evaluator.student(work.student, stage_index=stage_index, step=step)
