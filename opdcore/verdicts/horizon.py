"""Whether the teacher's signal reaches to the end of the responses that are planned."""

from __future__ import annotations

from collections.abc import Sequence

from opdcore.contract.probe import Depth
from opdcore.contract.verdicts import Evidence, Verdict
from opdcore.verdicts.case import Case, figure
from opdcore.verdicts.readings import interval, side


def horizon_risk(case: Case) -> Verdict | None:
    """They part ways within a response, the teacher's help fades or turns to harm, or it grows lost."""
    if parts_ways(case) or _harms(case):
        return _parted(case)
    return _by_hand_off(case) or _by_position(case)


def parts_ways(case: Case) -> bool:
    """Alike at the start of a response and apart further on: its depth is at fault, not the pair."""
    top1, divergence = _chunks(case, "top1_agreement"), _chunks(case, "reverse_kl")
    if not (top1 and divergence):
        return False
    alike = top1[0] >= case.limits.compatible_overlap
    return alike and max(divergence) > case.limits.horizon_kl and _diverges(case)


def _harms(case: Case) -> bool:
    """Early on the teacher does no worse than the student would, late certainly worse."""
    depths = _shares(case)
    if len(depths) < 2 or depths[0].gain.value is None:
        return False
    return depths[0].gain.value >= 0 and side(depths[-1].gain, 0) == "below"


def _diverges(case: Case) -> bool:
    """Some later chunk diverges several times as much as the first."""
    divergence = _chunks(case, "reverse_kl")
    if not divergence:
        return False
    return max(divergence) > case.limits.horizon_kl_ratio * divergence[0]


def _parted(case: Case) -> Verdict:
    """By position, by hand-off, or by both; one without the other is no more than a risk."""
    parted, harms = parts_ways(case), _harms(case)
    divergence = _chunks(case, "reverse_kl")
    grows = (
        f"From the first positions to later ones the divergence grows from {figure(divergence[0])} "
        f"to {figure(max(divergence))} nats"
        if divergence
        else "Divergence by position was not measured"
    )
    return case.verdict(
        "HORIZON_RISK",
        case.confidence(parted + harms + _diverges(case), excluded=True, most="medium"),
        f"{grows}, and at 75% of the student's response the teacher's help is "
        f"{case.figure('hand_off_75')}.",
        "The teacher follows how the student begins and is lost in what comes after, where it would "
        "teach noise; cap max_response_tokens before they part, or begin with a cold start.",
        case.evidence("descendant", "top1_agreement", "reverse_kl", "hand_off_25", "hand_off_75"),
        go="no_go" if parted or _diverges(case) else "undecided",
    )


def _by_hand_off(case: Case) -> Verdict | None:
    """By depth in tokens alone: at a share of a response its own mistakes leave nothing to help with."""
    depths = _tokens(case)
    if len(depths) < 2 or not _fades(depths[0], depths[-1], case.limits.horizon_share):
        return None
    return _faded(case, depths[0], depths[-1])


def _fades(first: Depth, last: Depth, share: float) -> bool:
    """Certainly positive, and certainly less further on, where it may as well be nothing."""
    if first.gain.value is None or last.gain.value is None:
        return False
    low, high = interval(last.gain)
    start = interval(first.gain)[0]
    return start > 0 and high < start and low <= 0 and last.gain.value <= share * first.gain.value


def _faded(case: Case, first: Depth, last: Depth) -> Verdict:
    rows = tuple(
        Evidence(
            metric="hand_off_min", value=depth.gain.value, low=depth.gain.low, high=depth.gain.high
        )
        for depth in (first, last)
    )
    return case.verdict(
        "HORIZON_RISK",
        case.confidence(1 + _grows_lost(case), excluded=True, most="medium"),
        f"The teacher's help falls from {figure(first.gain.value or 0)} at token {first.tokens} to "
        f"{figure(last.gain.value or 0)} at token {last.tokens} of the student's response.",
        "Late tokens would be taught by noise; cap max_response_tokens where the help is still there.",
        rows,
    )


def _by_position(case: Case) -> Verdict | None:
    if not _grows_lost(case):
        return None
    entropy, top1 = _chunks(case, "teacher_entropy"), _chunks(case, "top1_agreement")
    return case.verdict(
        "HORIZON_RISK",
        "low",
        f"From the first to the last positions the teacher's entropy grows from {figure(entropy[0])} "
        f"to {figure(entropy[-1])} nats and top-1 agreement falls from {figure(top1[0])} to "
        f"{figure(top1[-1])}.",
        "Its judgement of late tokens may be noise; measure the hand-off, or cap max_response_tokens.",
        case.evidence("descendant", "teacher_entropy", "top1_agreement"),
    )


def _grows_lost(case: Case) -> bool:
    """Chunks carry no interval, so both signs are asked for."""
    entropy, top1 = _chunks(case, "teacher_entropy"), _chunks(case, "top1_agreement")
    if not (entropy and top1):
        return False
    limits = case.limits
    fell = top1[0] - top1[-1] > limits.horizon_top1_fall
    return fell and entropy[-1] > limits.horizon_entropy_ratio * max(entropy[0], 1e-3)


def _chunks(case: Case, metric: str) -> Sequence[float]:
    """A metric's chunks that rollouts reached, first to last; empty where there are not two."""
    chunks = case.readings.probe.chunks
    reached = chunks.reached(metric) if chunks and metric in chunks.values else ()
    values = [one for one in reached if one is not None]
    return values if len(values) >= 2 else ()


def _tokens(case: Case) -> list[Depth]:
    found = [one for one in case.readings.probe.hand_off if one.tokens is not None]
    return sorted(found, key=lambda one: one.tokens or 0)


def _shares(case: Case) -> list[Depth]:
    found = [one for one in case.readings.probe.hand_off if one.share is not None]
    return sorted(found, key=lambda one: one.share or 0)
