"""The diagnose stage: what the pair and the prompts say before training, and what that means.

It measures, asks for the verdict and says both; it changes no weight and stops no run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opdcore.calibration import Calibration, laboratory
from opdcore.contract.evaluation import Goal
from opdcore.contract.probe import DiagnoseStage, Diagnosis, Probe
from opdcore.contract.recipe import DistillStage
from opdcore.contract.verdicts import Verdict
from opdcore.diagnosis.probe import Settled, measure
from opdcore.verdicts import judge
from opdcore.workspace import Line, Workspace


def diagnose(stage: DiagnoseStage, work: Workspace, *, stage_index: int) -> Iterator[Line]:
    """Yields progress and last the diagnosis, for the distillation that comes after the stage."""
    recipe = work.job.recipe
    planned = [one for one in recipe.stages[stage_index:] if isinstance(one, DistillStage)]
    calibration = laboratory()
    found = measure(
        stage,
        work,
        stage_index=stage_index,
        planned=planned,
        settled=settled_by(recipe.goal, planned, calibration),
    )
    for item in found:
        if isinstance(item, Probe):
            yield Line(conclude(item, recipe.goal, planned, calibration))
        else:
            yield Line(item)


def conclude(
    probe: Probe, goal: Goal, planned: Sequence[DistillStage], calibration: Calibration
) -> Diagnosis:
    """The probe with its verdict for the first of the planned stages."""
    verdict = _verdict(probe, goal, planned, calibration)
    return Diagnosis(probe=probe, verdict=verdict, calibration=calibration.name)


def settled_by(goal: Goal, planned: Sequence[DistillStage], calibration: Calibration) -> Settled:
    """A probe is settled once its verdict is certain: independent metrics agree, intervals and all."""

    def settled(probe: Probe) -> bool:
        verdict = _verdict(probe, goal, planned, calibration)
        return verdict.go != "undecided" and verdict.confidence == "high"

    return settled


def _verdict(
    probe: Probe, goal: Goal, planned: Sequence[DistillStage], calibration: Calibration
) -> Verdict:
    objective = planned[0] if planned else None
    return judge(probe, goal=goal, objective=objective, calibration=calibration)
