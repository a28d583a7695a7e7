"""A case: what is judged, and how far a verdict on it can be trusted.

It shapes verdicts; which one is right the tests decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from opdcore.contract.calibration import ControlName, Thresholds
from opdcore.contract.distill import DistillStage
from opdcore.contract.evaluation import Goal
from opdcore.contract.verdicts import BEFORE, Confidence, Evidence, Go, Verdict
from opdcore.verdicts.readings import Readings

_LEVELS: tuple[Confidence, ...] = ("low", "medium", "high")

# Said wherever rollouts were read and nothing graded them.
UNGRADED = (
    "Without a verifier only the set-up, malformed rollouts, a mismatch of patterns, a teacher that "
    "says nothing else, and the objective were judged; not what the teacher knows, nor how far its "
    "signal reaches."
)


@dataclass(frozen=True)
class Case:
    """A probe with its calibration, the goal, the objective if there is one, and the family."""

    readings: Readings
    goal: Goal
    objective: DistillStage | None
    in_family: bool

    @property
    def limits(self) -> Thresholds:
        return self.readings.calibration.thresholds

    @property
    def relation(self) -> str:
        return self.readings.probe.provenance.relation

    @property
    def scored(self) -> bool:
        """Whether rollouts were sampled and scored at all."""
        return self.readings.measure("effective_overlap") is not None

    @property
    def graded(self) -> bool:
        return self.readings.probe.verifier != "none"

    @property
    def few(self) -> bool:
        """Too few prompts for more than low confidence."""
        return self.readings.probe.prompts < self.limits.fewest_prompts

    def confidence(self, agreeing: int, *, excluded: bool, most: Confidence = "high") -> Confidence:
        """Two independent metrics that leave the alternative out: high; one, or not: medium.

        `agreeing` counts metrics that do not follow from one another, `excluded` says whether an
        interval excludes the control's value of the alternative.
        """
        found: Confidence = "high" if agreeing >= 2 and excluded else "medium"
        if agreeing == 0 or self.few:
            found = "low"
        return lower(found, most, "high" if self.in_family else "medium")

    def verdict(
        self, code: str, confidence: Confidence, said: str, why: str,
        evidence: tuple[Evidence, ...] = (), *, go: Go | None = None,
    ) -> Verdict:  # fmt: skip
        """A verdict in two sentences: what was found, and what it means."""
        return Verdict(
            code=code,
            go=go or BEFORE[code].go,
            confidence=confidence,
            evidence=evidence,
            explanation=f"{said} {why}",
        )

    def qualified(self, why: str) -> str:
        """The sentence, unless nothing graded the rollouts: then which verdicts that leaves."""
        return UNGRADED if self.scored and not self.graded else why

    def evidence(self, control: ControlName, *metrics: str) -> tuple[Evidence, ...]:
        """Rows of what was measured, beside a control."""
        return self.readings.evidence(control, *metrics)

    def figure(self, metric: str) -> str:
        """A measure in a sentence."""
        value = self.readings.value(metric)
        return "not measured" if value is None else figure(value)


def lower(*levels: Confidence) -> Confidence:
    """The lowest of some levels."""
    return min(levels, key=_LEVELS.index)


def figure(value: float) -> str:
    """Two decimals, or two digits of what is smaller."""
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
