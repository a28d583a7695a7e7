"""What a detector looks at and what it returns: a stage's knobs and thresholds; a sign with its words."""

from __future__ import annotations

from dataclasses import dataclass

from opdcore.contract.calibration import Thresholds
from opdcore.contract.distill import DistillStage
from opdcore.contract.verdicts import Confidence


@dataclass(frozen=True)
class Setting:
    """What a stage was told to do, as far as failures depend on it."""

    stage: DistillStage
    limits: Thresholds

    @property
    def unnormalised(self) -> bool:
        """The truncated reverse divergence without its correction (2605.11182)."""
        stage = self.stage
        truncated = (stage.form, stage.divergence) == ("top_k", "reverse")
        return truncated and stage.normalisation == "unnormalised"

    @property
    def top1(self) -> bool:
        return self.stage.form == "top_k" and self.stage.k == 1


@dataclass(frozen=True)
class Sign:
    """A signature that is seen at this step: its metrics, what is so, and what to do."""

    metrics: tuple[str, ...]
    said: str
    remedy: str
    confidence: Confidence = "medium"


def told(value: float | None) -> str:
    """A level in a sentence: two decimals, or two digits of what is smaller."""
    if value is None:
        return "unknown"
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
