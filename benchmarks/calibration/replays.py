"""Draws verdicts anew from what a triple's run left behind: before it began, and at each of its steps.

So the study can be summarised again with other thresholds, without a run. It knows no triple.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from opdcore import calibration, verdicts
from opdcore.contract.distill import DistillStage
from opdcore.contract.evaluation import Goal
from opdcore.contract.positions import Positions
from opdcore.contract.probe import Probe
from opdcore.contract.verdicts import Verdict
from opdcore.monitor import Monitor, is_failing


class Said(NamedTuple):
    """A change of a run's health."""

    step: int
    verdict: Verdict

    @property
    def failing(self) -> bool:
        return is_failing(self.verdict)


def before(probe: Probe, stage: DistillStage) -> Verdict:
    """The verdict on a probe, by the built-in calibration."""
    return verdicts.judge(probe, goal=Goal(), objective=stage, calibration=calibration.laboratory())


def during(told: dict[str, Any], stage: DistillStage) -> list[Said]:
    """Every change of health that the monitor says, step by step."""
    monitor, said = Monitor(stage), []
    series, positions = told["series"], told["positions"]
    evaluations = {one["step"]: one for one in told["evaluations"] if one["role"] == "student"}
    for step in range(stage.steps + 1):
        verdicts = []
        if step:
            values = {key: column[step - 1] for key, column in series.items()}
            chunks = Positions.model_validate(positions[step - 1])
            verdicts.append(monitor.observe(step, values, chunks))
        if one := evaluations.get(step):
            low, high = one["accuracy_low"], one["accuracy_high"]
            verdicts.append(monitor.accuracy(step, one["accuracy"], low, high))
        said += [Said(step, verdict) for verdict in verdicts if verdict is not None]
    return said
