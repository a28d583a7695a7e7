"""A family's own calibration: what its finished runs were like before they began, and what became of them.

Every run that was probed and has an outcome is a control of its family. Cut-offs move only where two
controls are apart; all else stays the laboratory's. It knows numbers; no model, no run, no file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from opdcore.calibration import laboratory
from opdcore.contract.calibration import Calibration, Control, ControlName, Thresholds
from opdcore.contract.outcome import OutcomeCode
from opdcore.contract.probe import Measure, Relation

# Fewer runs of a control move no cut-off: their range says too little of the next one.
FEWEST_RUNS = 3

OUTCOMES: dict[ControlName, str] = {
    "identical": "No gain, by definition: there is nothing to learn from oneself.",
    "descendant": "Success.",
    "same_pipeline": "No gain from a teacher that knew no more.",
    "reverse": "Regression to a teacher that was worse.",
    "other_pattern": "Failure with a teacher that was better.",
}


@dataclass(frozen=True)
class Finished:
    """A run of the family: how its teacher was related, what was measured first, what became of it."""

    relation: Relation
    outcome: OutcomeCode
    measures: Mapping[str, Measure]


class Cut(NamedTuple):
    """Cut-offs between what `below` reached at most and `above` at least, in some metrics."""

    thresholds: tuple[str, ...]
    below: ControlName
    above: ControlName
    metrics: tuple[str, ...]
    between: Callable[[float, float], tuple[float, ...]]


def calibrated(family: str, finished: Iterable[Finished]) -> Calibration:
    """The family's calibration; without any run it is the laboratory's cut-offs and no control."""
    grouped: dict[ControlName, list[Finished]] = defaultdict(list)
    for run in finished:
        name = control_of(run)
        if name is not None:
            grouped[name].append(run)
    controls = {name: _control(name, grouped[name]) for name in OUTCOMES if grouped[name]}
    return Calibration(
        name=family,
        family=family,
        runs=sum(control.runs for control in controls.values()),
        controls=controls,
        thresholds=_thresholds(controls),
    )


def control_of(run: Finished) -> ControlName | None:
    """Which control a run is; None where its outcome says nothing certain."""
    if run.relation == "identical":
        return "identical"
    match run.outcome:
        case "success":
            return "descendant"
        case "no_gain" | "regressed":
            return _failed(run)
        case "inconclusive" if run.relation == "same_pipeline" and not _is_better(run):
            return "same_pipeline"
        case _:
            return None


def _failed(run: Finished) -> ControlName:
    """A higher score is no news where data and recipe are the same (2604.13016, 3.2)."""
    if run.relation == "same_pipeline" and run.outcome == "no_gain":
        return "same_pipeline"
    if _is_better(run):
        return "other_pattern"
    return (
        "reverse" if run.relation == "ancestor" or run.outcome == "regressed" else "same_pipeline"
    )


def _is_better(run: Finished) -> bool:
    """Whether the teacher is certainly better than the student was."""
    gap = run.measures.get("accuracy_gap")
    if gap is None or gap.value is None:
        return False
    return (gap.value if gap.low is None else gap.low) > 0


def _control(name: ControlName, runs: Sequence[Finished]) -> Control:
    """Medians over runs, with the range from the least to the largest."""
    keys = {key for run in runs for key in run.measures}
    measures = {key: one for key in sorted(keys) if (one := _measure(key, runs)) is not None}
    return Control(runs=len(runs), outcome=OUTCOMES[name], measures=measures)


def _measure(key: str, runs: Sequence[Finished]) -> Measure | None:
    found = [run.measures[key] for run in runs if key in run.measures]
    values = [one.value for one in found if one.value is not None]
    if not values:
        return None
    return Measure(
        value=median(values),
        low=min(values),
        high=max(values),
        prompts=sum(one.prompts for one in found),
    )


def _thresholds(controls: Mapping[ControlName, Control]) -> Thresholds:
    """The laboratory's, except where the family's own controls leave room between them."""
    moved: dict[str, float] = {}
    for cut in CUTS:
        edges = _edges(cut, controls)
        if edges is not None:
            values = cut.between(*edges)
            moved |= {
                name: float(f"{v:.4g}") for name, v in zip(cut.thresholds, values, strict=True)
            }
    return laboratory().thresholds.model_copy(update=moved)


def _edges(cut: Cut, controls: Mapping[ControlName, Control]) -> tuple[float, float] | None:
    """The highest of the lower control and the lowest of the upper one; None where they meet."""
    below, above = controls.get(cut.below), controls.get(cut.above)
    if below is None or above is None or min(below.runs, above.runs) < FEWEST_RUNS:
        return None
    highs = [one.high for one in _of(below, cut.metrics) if one.high is not None]
    lows = [one.low for one in _of(above, cut.metrics) if one.low is not None]
    if not (highs and lows) or max(highs) >= min(lows):
        return None
    return max(highs), min(lows)


def _of(control: Control, metrics: Sequence[str]) -> list[Measure]:
    return [control.measures[key] for key in metrics if key in control.measures]


def _thirds(low: float, high: float) -> tuple[float, float]:
    """A grey zone: the middle third."""
    return low + (high - low) / 3, high - (high - low) / 3


def _middle(low: float, high: float) -> tuple[float]:
    return ((low + high) / 2,)


def _mean_ratio(low: float, high: float) -> tuple[float]:
    """Geometric mean, for what spans orders of magnitude; a low end of 0 counts as a thousandth."""
    return (math.sqrt(max(low, high / 1000) * high),)


CUTS = (
    Cut(
        ("incompatible_overlap", "compatible_overlap"),
        "other_pattern",
        "descendant",
        ("effective_overlap", "top1_agreement"),
        _thirds,
    ),
    Cut(
        ("incompatible_hand_off", "compatible_hand_off"),
        "other_pattern",
        "descendant",
        ("hand_off_min",),
        _thirds,
    ),
    Cut(("overlap_mass",), "other_pattern", "descendant", ("overlap_mass_student",), _middle),
    Cut(
        ("nothing_on_failed", "new_on_failed"),
        "same_pipeline",
        "descendant",
        ("teacher_on_failed",),
        _thirds,
    ),
    Cut(("tiny_kl",), "same_pipeline", "descendant", ("reverse_kl",), _mean_ratio),
)
