"""A family as its page shows it: controls with their runs, a strip a metric, and what moved cut-offs.

Lengths are shares of a track, so that a template draws them without arithmetic. It changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

from opdcore.calibration import laboratory
from opdcore.contract.calibration import Calibration, Control, ControlName, Thresholds
from opdcore.contract.probe import PROBE_METRICS, Measure
from opdcore.controls import CUTS, FEWEST_RUNS, Cut, calibrated
from webapp.models import Family
from webapp.services import families
from webapp.services.families import ProbedRun

CONTROLS: dict[ControlName, tuple[str, str, str]] = {
    "identical": (
        "Identical",
        "The student taught by itself.",
        "Run the controls from a pair's page.",
    ),
    "descendant": (
        "Known good",
        "A teacher that this student learned from.",
        "Run the controls from a pair's page, or diagnose and distil a pair that works.",
    ),
    "same_pipeline": (
        "Same pipeline",
        "A teacher of the student's own data and recipe, perhaps larger, that knows no more.",
        "It needs another teacher: register one, put its pair into this family, and run that.",
    ),
    "reverse": (
        "Reverse",
        "The better one taught by the worse one.",
        "Run the controls from a pair's page.",
    ),
    "other_pattern": (
        "Other pattern",
        "A better teacher that thinks in another way, and that the student did not learn from.",
        "It comes from a pair that failed although its teacher was better: put one into this family.",
    ),
}


class Scale(NamedTuple):
    """A strip's metric, the cut-offs that it is held against, and the ends of its axis."""

    key: str
    thresholds: tuple[str, ...]
    least: float
    most: float
    logarithmic: bool = False


SCALES = (
    Scale("effective_overlap", ("incompatible_overlap", "compatible_overlap"), 0, 1),
    Scale("top1_agreement", ("incompatible_overlap", "compatible_overlap"), 0, 1),
    Scale("hand_off_min", ("incompatible_hand_off", "compatible_hand_off"), -1, 1),
    Scale("teacher_on_failed", ("nothing_on_failed", "new_on_failed"), 0, 1),
    Scale("accuracy_gap", ("small_gap",), -1, 1),
    Scale("reverse_kl", ("tiny_kl",), 0.001, 10, logarithmic=True),
)
ROW_HEIGHT, AXIS_HEIGHT = 26, 20


@dataclass(frozen=True, slots=True)
class Dot:
    """A run on a strip: `x` in per cent of the track, `y` in pixels."""

    run: ProbedRun
    value: float
    x: float


@dataclass(frozen=True, slots=True)
class Lane:
    """A control's row of a strip; `pack` is where an imported control lies."""

    name: ControlName
    label: str
    y: int
    dots: list[Dot]
    pack: tuple[float, float, Measure] | None


@dataclass(frozen=True, slots=True)
class CutLine:
    """A cut-off on a strip, now and the laboratory's."""

    name: str
    value: float
    x: float
    usual: float
    usual_x: float

    @property
    def has_moved(self) -> bool:
        return self.value != self.usual


@dataclass(frozen=True, slots=True)
class Strip:
    """One metric of all runs, a row a control."""

    key: str
    label: str
    help: str
    unit: str
    lanes: list[Lane]
    cuts: list[CutLine]
    ticks: list[tuple[float, str]]
    height: int

    @property
    def axis_y(self) -> int:
        return self.height - AXIS_HEIGHT

    @property
    def grey(self) -> tuple[float, float] | None:
        """From the lower cut-off to the upper one: what lies there is left open."""
        if len(self.cuts) != 2:
            return None
        low, high = sorted(cut.x for cut in self.cuts)
        return low, round(high - low, 2)


@dataclass(frozen=True, slots=True)
class ControlCard:
    """A control as far as the family has it."""

    name: ControlName
    label: str
    is_what: str
    missing: str
    runs: list[ProbedRun]
    present: Control | None
    from_pack: bool

    @property
    def still_needed(self) -> int:
        """Runs until it can move a cut-off; one shows what a control is that decides none."""
        decides = any(self.name in (cut.below, cut.above) for cut in CUTS)
        return max(0, (FEWEST_RUNS if decides else 1) - len(self.runs))


@dataclass(frozen=True, slots=True)
class Threshold:
    """A cut-off now, beside the laboratory's."""

    name: str
    label: str
    value: float
    usual: float


@dataclass(frozen=True, slots=True)
class CutRow:
    """Cut-offs that two controls decide together: moved or not, and why."""

    thresholds: list[Threshold]
    source: str
    why: str

    @property
    def has_moved(self) -> bool:
        return self.source != "laboratory"


@dataclass(frozen=True, slots=True)
class Report:
    """A family, whole."""

    controls: list[ControlCard]
    strips: list[Strip]
    cuts: list[CutRow]
    undecided: list[ProbedRun]
    runs: int

    @property
    def is_empty(self) -> bool:
        return not any(card.present for card in self.controls)

    @property
    def moved(self) -> int:
        """Cut-offs that the family's own runs decide."""
        return sum(len(cut.thresholds) for cut in self.cuts if cut.source == "own")


def of(family: Family) -> Report:
    """The family's runs as they are now, beside its calibration."""
    probed = families.probed_runs(family)
    own = calibrated(family.name, (one.finished for one in probed))
    cards = control_cards(family, probed)
    present = family.calibration
    return Report(
        controls=cards,
        strips=[_strip(scale, cards, present.thresholds) for scale in SCALES],
        cuts=[_cut_row(cut, own, present) for cut in CUTS],
        undecided=[one for one in probed if one.control is None],
        runs=len(probed),
    )


def control_cards(family: Family, probed: list[ProbedRun] | None = None) -> list[ControlCard]:
    """Each control with the family's own runs of it, and whether the pack stands in for them."""
    found = families.probed_runs(family) if probed is None else probed
    present = family.calibration.controls
    cards = []
    for name in get_args(ControlName):
        label, is_what, missing = CONTROLS[name]
        runs = [one for one in found if one.control == name]
        control = present.get(name)
        from_pack = control is not None and not runs
        cards.append(ControlCard(name, label, is_what, missing, runs, control, from_pack))
    return cards


def _strip(scale: Scale, cards: list[ControlCard], limits: Thresholds) -> Strip:
    metric = PROBE_METRICS[scale.key]
    axis = _Axis(scale.least, scale.most, logarithmic=scale.logarithmic)
    lanes = [_lane(card, scale.key, axis, row) for row, card in enumerate(cards)]
    return Strip(
        scale.key,
        metric.label,
        metric.help,
        metric.unit or "",
        lanes,
        [_cut_line(name, axis, limits) for name in scale.thresholds],
        axis.ticks,
        ROW_HEIGHT * len(lanes) + AXIS_HEIGHT,
    )


def _cut_line(name: str, axis: _Axis, limits: Thresholds) -> CutLine:
    value, usual = getattr(limits, name), getattr(laboratory().thresholds, name)
    return CutLine(_words(name), value, axis.x(value), usual, axis.x(usual))


def _lane(card: ControlCard, key: str, axis: _Axis, row: int) -> Lane:
    dots = []
    for one in card.runs:
        measure = one.finished.measures.get(key)
        if measure is not None and measure.value is not None:
            dots.append(Dot(one, measure.value, axis.x(measure.value)))
    measure = card.present.measures.get(key) if card.present and card.from_pack else None
    pack = None
    if measure is not None and measure.value is not None:
        low = measure.value if measure.low is None else measure.low
        high = measure.value if measure.high is None else measure.high
        pack = (axis.x(low), axis.x(high), measure)
    return Lane(card.name, card.label, ROW_HEIGHT * row + ROW_HEIGHT // 2, dots, pack)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values to per cent of a track; what lies beyond an end stands at it."""

    least: float
    most: float
    logarithmic: bool

    def x(self, value: float) -> float:
        held = min(self.most, max(self.least, value))
        if self.logarithmic:
            share = math.log(held / self.least) / math.log(self.most / self.least)
        else:
            share = (held - self.least) / (self.most - self.least)
        # Marks at either end stay whole.
        return round(2 + 96 * share, 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        if self.logarithmic:
            values = [0.001, 0.01, 0.1, 1.0, 10.0]
        else:
            values = [self.least + (self.most - self.least) * part / 4 for part in range(5)]
        return [(self.x(value), f"{value:g}") for value in values]


def _cut_row(cut: Cut, own: Calibration, present: Calibration) -> CutRow:
    usual, limits = laboratory().thresholds, present.thresholds
    rows = [
        Threshold(name, _words(name), getattr(limits, name), getattr(usual, name))
        for name in cut.thresholds
    ]
    if families.decides(cut, own):
        return CutRow(rows, "own", _apart(cut, own))
    source = "laboratory" if all(one.value == one.usual for one in rows) else "pack"
    return CutRow(rows, source, _why_not(cut, own))


def _apart(cut: Cut, own: Calibration) -> str:
    below, above = own.controls[cut.below], own.controls[cut.above]
    return (
        f"{_named(cut.below)} reaches {_highest(below, cut):.3g} at most over {below.runs} runs, "
        f"{_named(cut.above)} {_lowest(above, cut):.3g} at least over {above.runs}."
    )


def _why_not(cut: Cut, own: Calibration) -> str:
    lacking = [
        f"{_named(name)} has {own.controls[name].runs if name in own.controls else 0} of "
        f"{FEWEST_RUNS} runs"
        for name in (cut.below, cut.above)
        if name not in own.controls or own.controls[name].runs < FEWEST_RUNS
    ]
    if lacking:
        return f"{' and '.join(lacking)}."
    below, above = own.controls[cut.below], own.controls[cut.above]
    measured = all(any(key in one.measures for key in cut.metrics) for one in (below, above))
    if not measured:
        labels = " or ".join(PROBE_METRICS[key].label for key in cut.metrics)
        return f"{labels} was not measured in both."
    return (
        f"They meet: {_named(cut.below)} reaches {_highest(below, cut):.3g}, and "
        f"{_named(cut.above)} starts at {_lowest(above, cut):.3g}."
    )


def _words(threshold: str) -> str:
    return threshold.replace("_", " ").replace("kl", "KL").replace("hand off", "hand-off")


def _named(name: ControlName) -> str:
    return CONTROLS[name][0]


def _highest(control: Control, cut: Cut) -> float:
    found = [control.measures[key].high for key in cut.metrics if key in control.measures]
    return max(value for value in found if value is not None)


def _lowest(control: Control, cut: Cut) -> float:
    found = [control.measures[key].low for key in cut.metrics if key in control.measures]
    return min(value for value in found if value is not None)
