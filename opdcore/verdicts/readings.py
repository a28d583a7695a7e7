"""Readings of a probe: its measures held against cut-offs, interval and all.

A measure is above a cut-off only if its whole interval is, so that noise decides nothing. It knows no
verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from opdcore.contract.calibration import Calibration, ControlName
from opdcore.contract.probe import Measure, Probe
from opdcore.contract.verdicts import Evidence

# Where an interval lies: wholly on one side of a cut-off, across it, or nowhere.
Side = Literal["above", "below", "across", "unknown"]


@dataclass(frozen=True)
class Readings:
    """A probe beside the calibration that it is read with."""

    probe: Probe
    calibration: Calibration

    def measure(self, metric: str) -> Measure | None:
        """The measure, if it has a value at all."""
        found = self.probe.measures.get(metric)
        return found if found is not None and found.value is not None else None

    def value(self, metric: str) -> float | None:
        """The mean alone, for sentences."""
        found = self.measure(metric)
        return found.value if found else None

    def side(self, metric: str, cut: float) -> Side:
        """On which side of the cut-off the whole interval lies."""
        return side(self.measure(metric), cut)

    def excludes(self, control: ControlName, *metrics: str) -> bool:
        """Whether some metric's interval lies wholly outside that control's range."""
        return any(self._excludes(control, metric) for metric in metrics)

    def evidence(self, control: ControlName, *metrics: str) -> tuple[Evidence, ...]:
        """Rows for those metrics that were measured, beside the control's values."""
        return tuple(
            Evidence(
                metric=metric,
                value=found.value,
                low=found.low,
                high=found.high,
                reference=self.calibration.reference(control, metric),
            )
            for metric in metrics
            if (found := self.measure(metric)) is not None
        )

    def _excludes(self, control: ControlName, metric: str) -> bool:
        found, bounds = self.measure(metric), self.calibration.bounds(control, metric)
        if found is None or bounds is None:
            return False
        low, high = interval(found)
        return high < bounds[0] or low > bounds[1]


def interval(measure: Measure) -> tuple[float, float]:
    """Both bounds; the value itself where a bound is missing."""
    value = 0.0 if measure.value is None else measure.value
    low = value if measure.low is None else measure.low
    return low, value if measure.high is None else measure.high


def side(measure: Measure | None, cut: float) -> Side:
    """On which side of the cut-off a measure's whole interval lies; a bound on it is across."""
    if measure is None or measure.value is None:
        return "unknown"
    low, high = interval(measure)
    if low > cut:
        return "above"
    return "below" if high < cut else "across"


def lean(sides: Sequence[Side], wanted: Side) -> bool:
    """Whether there is a known side and each known one is the wanted one."""
    known = [one for one in sides if one != "unknown"]
    return bool(known) and all(one == wanted for one in known)
