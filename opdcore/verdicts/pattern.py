"""Whether teacher and student think alike on the student's own text.

No cut-off on a single metric decides: overlap, top-1 agreement and mass are one group of evidence,
the hand-off is a second, the student's mass on the teacher's style a third.
"""

from __future__ import annotations

from typing import Literal

from opdcore.contract.verdicts import Verdict
from opdcore.verdicts.case import Case
from opdcore.verdicts.horizon import parts_ways
from opdcore.verdicts.readings import lean

Distance = Literal["close", "apart", "between", "unknown"]

_ROWS = (
    "effective_overlap",
    "top1_agreement",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "hand_off_min",
    "style_mass",
    "reverse_kl",
    "overlap_ratio",
)


def pattern_mismatch(case: Case) -> Verdict | None:
    """Distributions apart from the start, and no hand-off that shows the teacher at home there."""
    overlap, hand_off = by_overlap(case), by_hand_off(case)
    if overlap in ("close", "unknown") or hand_off == "close" or parts_ways(case):
        return None
    if overlap == "between" or _heals(case) or (hand_off == "unknown" and not case.in_family):
        return _open(case, overlap, hand_off)
    absent = case.readings.side("style_mass", case.limits.style_mass_absent) == "below"
    confidence = case.confidence(
        1 + (hand_off == "apart") + absent,
        excluded=case.readings.excludes("descendant", "effective_overlap", "hand_off_min"),
    )
    return case.verdict(
        "PATTERN_MISMATCH",
        confidence,
        _said(case),
        case.qualified(_meant(case)),
        case.evidence("descendant", *_ROWS),
    )


def by_overlap(case: Case) -> Distance:
    """How close both distributions are where the student goes."""
    sides, limits = case.readings.side, case.limits
    metrics = ("effective_overlap", "top1_agreement")
    if not case.scored:
        return "unknown"
    if lean([sides(one, limits.compatible_overlap) for one in metrics], "above"):
        return "close"
    apart = "below" in [sides(one, limits.incompatible_overlap) for one in metrics]
    masses = [
        sides(one, limits.overlap_mass) for one in ("overlap_mass_student", "overlap_mass_teacher")
    ]
    # Nearly all probability on common tokens: the tails differ, not the patterns.
    return "apart" if apart and not lean(masses, "above") else "between"


def by_hand_off(case: Case) -> Distance:
    """How the teacher fares when it goes on from the student's words."""
    low = case.readings.side("hand_off_min", case.limits.incompatible_hand_off)
    high = case.readings.side("hand_off_min", case.limits.compatible_hand_off)
    if low == "unknown":
        return "unknown"
    if high == "above":
        return "close"
    return "apart" if low == "below" else "between"


def _heals(case: Case) -> bool:
    """Reverse KL amplifies what the student already writes now and then."""
    return case.readings.side("style_mass", case.limits.style_mass_healing) == "above"


def _open(case: Case, overlap: Distance, hand_off: Distance) -> Verdict:
    """The grey zone: a risk, and not more."""
    lost = overlap == "between" and hand_off == "apart" and not _heals(case)
    why = (
        f"It puts {case.figure('style_mass')} on the teacher's style, enough that such a mismatch "
        "has healed by itself before."
        if _heals(case)
        else "Runs between these figures went either way; the first fifth of a run tells."
    )
    return case.verdict(
        "PATTERN_MISMATCH", "low", _said(case), case.qualified(why), case.evidence("descendant", *_ROWS),
        go="no_go" if lost else "undecided",
    )  # fmt: skip


def _said(case: Case) -> str:
    text = (
        f"On the student's text both prefer the same token at a share of "
        f"{case.figure('top1_agreement')}, and their likely tokens overlap by "
        f"{case.figure('effective_overlap')}"
    )
    if case.readings.measure("hand_off_min") is None:
        return f"{text}."
    return f"{text}; where the teacher goes on from it, accuracy changes by {case.figure('hand_off_min')}."


def _meant(case: Case) -> str:
    steps = f" within the planned {case.objective.steps} steps" if case.objective else ""
    return (
        "The teacher is lost in the student's way of thinking and teaches it little"
        f"{steps}; begin with a cold start on the teacher's own responses."
    )
