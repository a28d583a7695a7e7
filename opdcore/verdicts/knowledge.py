"""Whether the teacher knows what the student does not: worse, nothing new, or something to learn.

A higher score alone proves nothing (2604.13016, 3.2): a teacher of the same data and recipe scores
higher and teaches nothing, so provenance holds the confidence down.
"""

from __future__ import annotations

from typing import Literal

from opdcore.contract.verdicts import Confidence, Go, Verdict
from opdcore.verdicts.case import Case

Sign = Literal["new", "nothing", "open"]

_ROWS = (
    "accuracy_gap",
    "teacher_on_failed",
    "hand_off_25",
    "hand_off_50",
    "hand_off_75",
    "reverse_kl",
    "first_loss",
    "grad_norm",
    "student_accuracy",
    "teacher_accuracy",
)
_UNSETTLED = (
    "Published teachers of that kind scored higher and taught nothing, but none could be built to "
    "calibrate by; watch the first fifth of the run, or choose one that was trained further."
)
_HAND_OFFS = ("hand_off_25", "hand_off_50", "hand_off_75")


def regression_risk(case: Case) -> Verdict | None:
    """The teacher is worse than the student, or what the student came from.

    A student that lost a skill is well restored by its ancestor, as long as that one is better.
    """
    gap = case.readings.side("accuracy_gap", 0)
    worse = gap == "below" and _accuracy_matters(case)
    ancestor = case.relation == "ancestor" and case.goal.kind == "acquire"
    if not (worse or ancestor):
        return None
    return case.verdict(
        "REGRESSION_RISK",
        _regression_confidence(case, worse=worse, ancestor=ancestor, gap=gap),
        f"The teacher's accuracy minus the student's is {case.figure('accuracy_gap')}"
        f"{', and it is an ancestor of the student' if ancestor else ''}.",
        "The student would be trained back to it; choose a teacher that was trained further, with new "
        "data or rewards.",
        case.evidence("reverse", *_ROWS),
    )


def nothing_new(case: Case) -> Verdict | None:
    """The teacher has nothing to teach, by independent signs or by where it comes from."""
    if case.relation == "identical":
        return _verdict(case, _identical_confidence(case), "no_go")
    signs = _signs(case)
    new = [key for key, sign in signs.items() if sign == "new"]
    nothing = [key for key, sign in signs.items() if sign == "nothing"]
    if case.relation == "same_pipeline":
        return _same_pipeline(case, signs, new, nothing)
    if case.goal.kind in ("compress", "align"):
        new = [*new, "goal"] if "reverse_kl" not in nothing else []
    if new and signs["accuracy_gap"] == "nothing" and "goal" not in new:
        return _verdict(case, "low", "undecided")
    if new:
        return None
    return _without_news(case, nothing)


def is_news(case: Case) -> bool:
    """Whether some sign, of those that need a verifier, says that there is something to learn."""
    return "new" in _signs(case).values()


def _without_news(case: Case, nothing: list[str]) -> Verdict | None:
    telling = [key for key in nothing if key in ("accuracy_gap", "teacher_on_failed", "reverse_kl")]
    if not telling:
        wide = case.readings.measure("accuracy_gap") is not None
        return _verdict(case, "low", "undecided") if wide else None
    excluded = case.readings.excludes("descendant", *telling)
    if telling == ["reverse_kl"] and not case.in_family:
        return _verdict(case, "low", "undecided")
    return _verdict(case, case.confidence(len(nothing), excluded=excluded), "no_go")


def _same_pipeline(
    case: Case, signs: dict[str, Sign], new: list[str], nothing: list[str]
) -> Verdict:
    """Same data and recipe: what it knows, the student could know; a higher score is no news.

    Where the score may be higher confidence is low: the papers' teachers taught nothing, and the
    laboratory's taught the little that they had.
    """
    if new or not nothing:
        return _verdict(case, "low", "no_go" if nothing else "undecided")
    excluded = case.readings.excludes("descendant", *nothing)
    found = case.confidence(1 + len(nothing), excluded=excluded)
    return _verdict(case, found if signs["accuracy_gap"] == "nothing" else "low", "no_go")


def _signs(case: Case) -> dict[str, Sign]:
    return {
        "accuracy_gap": _gap(case),
        "teacher_on_failed": _on_failed(case),
        "hand_off": _hand_off(case),
        "reverse_kl": _tiny(case),
        "first_loss": _small(case),
    }


def _gap(case: Case) -> Sign:
    if case.readings.side("accuracy_gap", 0) == "above":
        return "new"
    small = case.readings.side("accuracy_gap", case.limits.small_gap) == "below"
    return "nothing" if small else "open"


def _on_failed(case: Case) -> Sign:
    value = case.readings.value("teacher_on_failed")
    where = case.readings.side("teacher_on_failed", case.limits.new_on_failed)
    if where == "above":
        return "new"
    low = value is not None and value < case.limits.nothing_on_failed
    return "nothing" if where == "below" and low else "open"


def _hand_off(case: Case) -> Sign:
    """News where the teacher helps at some depth; nothing where it helps nowhere."""
    sides = [case.readings.side(key, 0) for key in _HAND_OFFS]
    values = [value for key in _HAND_OFFS if (value := case.readings.value(key)) is not None]
    if "above" in sides:
        return "new"
    return "nothing" if values and max(values) <= case.limits.no_hand_off else "open"


def _tiny(case: Case) -> Sign:
    tiny = case.readings.side("reverse_kl", case.limits.tiny_kl) == "below"
    return "nothing" if tiny else "open"


def _small(case: Case) -> Sign:
    """Loss and gradient small beside the known-good descendant's, where that has been measured."""
    for metric in ("first_loss", "grad_norm"):
        reference = case.readings.calibration.reference("descendant", metric)
        if reference is None:
            return "open"
        cut = case.limits.small_signal_share * reference
        if case.readings.side(metric, cut) != "below":
            return "open"
    return "nothing"


def _accuracy_matters(case: Case) -> bool:
    goal = case.goal
    wanted = goal.kind == "acquire" or goal.target_metric == "accuracy"
    return wanted or "accuracy" in goal.guard_metrics


def _regression_confidence(case: Case, *, worse: bool, ancestor: bool, gap: str) -> Confidence:
    if worse:
        hand_off = "below" in [case.readings.side(key, 0) for key in _HAND_OFFS]
        excluded = case.readings.excludes("descendant", "accuracy_gap")
        return case.confidence(1 + ancestor + hand_off, excluded=excluded)
    # Provenance alone: what was read from lineage counts for more than what somebody said.
    stated = case.readings.probe.provenance.stated
    return "low" if stated or gap == "above" else case.confidence(1, excluded=False)


def _identical_confidence(case: Case) -> Confidence:
    return "high" if _tiny(case) == "nothing" else "low"


def _verdict(case: Case, confidence: Confidence, go: Go) -> Verdict:
    told = [
        f"the accuracy gap is {case.figure('accuracy_gap')}",
        f"it solves {case.figure('teacher_on_failed')} of what the student failed every time",
        f"its KL from the student is {case.figure('reverse_kl')} nats",
    ]
    known = [text for text in told if "not measured" not in text]
    origin = {
        "same_pipeline": "It comes from the same data and recipe as the student",
        "identical": "The teacher is the student itself",
    }.get(case.relation, "The teacher brings little that the student lacks")
    said = f"{origin}: {', and '.join(known)}." if known else f"{origin}."
    why = (
        "That does not settle it; probe more prompts, or watch the first fifth of the run."
        if go == "undecided"
        else "A cold start would not change that; choose a teacher that was trained further, or train "
        "by reward."
    )
    if case.relation == "same_pipeline" and confidence == "low":
        why = _UNSETTLED
    return case.verdict(
        "NO_NEW_KNOWLEDGE",
        confidence,
        said,
        case.qualified(why),
        case.evidence("same_pipeline", *_ROWS),
        go=go,
    )
