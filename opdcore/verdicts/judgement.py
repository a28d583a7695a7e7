"""Judges a probe: the tests in their order, the first that speaks decides."""

from __future__ import annotations

from collections.abc import Callable

from opdcore.contract.calibration import Calibration
from opdcore.contract.distill import DistillStage
from opdcore.contract.evaluation import Goal
from opdcore.contract.probe import Probe
from opdcore.contract.verdicts import Confidence, Verdict
from opdcore.verdicts.case import UNGRADED, Case
from opdcore.verdicts.horizon import horizon_risk
from opdcore.verdicts.knowledge import is_news, nothing_new, regression_risk
from opdcore.verdicts.pattern import by_hand_off, by_overlap, pattern_mismatch
from opdcore.verdicts.readings import Readings
from opdcore.verdicts.soundness import (
    bad_objective,
    invalid_setup,
    malformed_student,
    privileged_text,
)

# In this order: what makes later measures meaningless comes first.
TESTS: dict[str, Callable[[Case], Verdict | None]] = {
    "INVALID_SETUP": invalid_setup,
    "OPSD_INSTANCE_PI": privileged_text,
    "STUDENT_MALFORMED": malformed_student,
    "REGRESSION_RISK": regression_risk,
    "PATTERN_MISMATCH": pattern_mismatch,
    "NO_NEW_KNOWLEDGE": nothing_new,
    "HORIZON_RISK": horizon_risk,
    "BAD_OBJECTIVE": bad_objective,
}

_ROWS = (
    "effective_overlap",
    "top1_agreement",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "hand_off_min",
    "accuracy_gap",
    "teacher_on_failed",
    "reverse_kl",
    "overlap_ratio",
    "truncation_rate",
)


def judge(
    probe: Probe,
    *,
    goal: Goal,
    objective: DistillStage | None,
    calibration: Calibration,
    family: str | None = None,
) -> Verdict:
    """What the probe means for a run with that goal and objective.

    `family` is the pair's, as the calibration's owner calls it. Where nobody says it, only what the
    laboratory's own verifier graded is of the laboratory's family; outside its family a calibration
    gives at most medium confidence.
    """
    pair = family if family is not None else probe.verifier
    case = Case(
        readings=Readings(probe, calibration),
        goal=goal,
        objective=objective,
        in_family=pair == calibration.family,
    )
    for test in TESTS.values():
        verdict = test(case)
        if verdict is not None:
            return verdict
    return _go(case)


def _go(case: Case) -> Verdict:
    if not case.scored:
        return case.verdict(
            "GO",
            "low",
            f"Nothing in the two folders speaks against the run; {_warnings(case)} to look at.",
            "No rollout was sampled, so neither patterns nor knowledge were judged.",
            go="undecided",
        )
    return case.verdict(
        "GO",
        _confidence(case),
        f"Likely tokens overlap by {case.figure('effective_overlap')} with top-1 agreement "
        f"{case.figure('top1_agreement')}, the accuracy gap is {case.figure('accuracy_gap')} and "
        f"the least hand-off {case.figure('hand_off_min')}.",
        _doubt(case),
        case.evidence("descendant", *_ROWS),
    )


def _confidence(case: Case) -> Confidence:
    agreeing = (by_overlap(case) == "close") + (by_hand_off(case) == "close") + is_news(case)
    excluded = case.readings.excludes(
        "other_pattern", "effective_overlap", "hand_off_min"
    ) and case.readings.excludes("same_pipeline", "accuracy_gap", "teacher_on_failed", "reverse_kl")
    most: Confidence = "high" if agreeing == 3 and not _warned(case) else "medium"
    if not case.graded or _on_special_tokens(case):
        most = "low"
    return case.confidence(agreeing, excluded=excluded, most=most)


def _doubt(case: Case) -> str:
    if _on_special_tokens(case):
        share = case.figure("special_reward_share")
        return (
            f"But a share of {share} of the reward lies on special tokens; compare end tokens, "
            "templates and thinking modes before the run."
        )
    if not case.graded:
        return UNGRADED
    return "Nothing speaks against the run; the monitor watches whether it goes on like this."


def _on_special_tokens(case: Case) -> bool:
    return case.readings.side("special_reward_share", case.limits.special_reward) == "above"


def _warned(case: Case) -> bool:
    return any(one.severity == "warning" for one in case.readings.probe.findings)


def _warnings(case: Case) -> str:
    count = sum(one.severity == "warning" for one in case.readings.probe.findings)
    return "there is no warning" if not count else f"there are {count} warnings"
