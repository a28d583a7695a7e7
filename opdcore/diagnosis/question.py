"""What a probe is asked: for which goal, which planned training, and by which calibration.

It draws verdicts from probes; it measures nothing and needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from opdcore.contract.calibration import Calibration
from opdcore.contract.distill import DistillStage
from opdcore.contract.evaluation import Goal
from opdcore.contract.probe import Diagnosis, Probe
from opdcore.contract.verdicts import Verdict
from opdcore.verdicts import judge


@dataclass(frozen=True)
class Question:
    """`family` is the pair's, where somebody knows it; `planned` is the distillation to come."""

    goal: Goal
    planned: tuple[DistillStage, ...]
    calibration: Calibration
    family: str | None = None

    def settled(self, probe: Probe) -> bool:
        """Whether the verdict is certain: independent metrics agree, intervals and all."""
        verdict = self._verdict(probe)
        return verdict.go != "undecided" and verdict.confidence == "high"

    def conclude(self, probe: Probe) -> Diagnosis:
        """The probe with its verdict, for the first of the planned stages."""
        verdict = self._verdict(probe)
        return Diagnosis(probe=probe, verdict=verdict, calibration=self.calibration.name)

    def _verdict(self, probe: Probe) -> Verdict:
        return judge(
            probe,
            goal=self.goal,
            objective=self.planned[0] if self.planned else None,
            calibration=self.calibration,
            family=self.family,
        )
