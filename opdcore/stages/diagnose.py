"""The diagnose stage: what the pair and the prompts say before training, and what that means.

It measures, asks for the verdict and says both; it changes no weight and stops no run.
"""

from __future__ import annotations

from collections.abc import Iterator

from opdcore.calibration import laboratory
from opdcore.contract.distill import DistillStage
from opdcore.contract.probe import DiagnoseStage, Probe
from opdcore.diagnosis.probe import measure
from opdcore.diagnosis.question import Question
from opdcore.workspace import Line, Workspace


def diagnose(stage: DiagnoseStage, work: Workspace, *, stage_index: int) -> Iterator[Line]:
    """Yields progress and last the diagnosis, for the distillation that comes after the stage."""
    recipe = work.job.recipe
    planned = tuple(one for one in recipe.stages[stage_index:] if isinstance(one, DistillStage))
    own = work.job.calibration
    question = Question(recipe.goal, planned, own or laboratory(), own.family if own else None)
    for item in measure(
        stage, work, stage_index=stage_index, planned=planned, settled=question.settled
    ):
        yield Line(question.conclude(item) if isinstance(item, Probe) else item)
