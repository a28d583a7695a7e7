"""What is wrong whatever the teacher knows: set-up, privileged text, broken rollouts, the objective."""

from __future__ import annotations

from opdcore.contract.probe import Finding
from opdcore.contract.verdicts import Confidence, Verdict
from opdcore.verdicts.case import Case
from opdcore.verdicts.pattern import by_overlap

# A finding of the static tier that has a verdict of its own.
PRIVILEGED = "setup.privileged_per_prompt"


def invalid_setup(case: Case) -> Verdict | None:
    """A refusal of the static tier: deterministic, so of high confidence."""
    refusals = [one for one in _refusals(case) if one.code != PRIVILEGED]
    if not refusals:
        return None
    first = refusals[0]
    more = f", for {len(refusals)} reasons" if len(refusals) > 1 else ""
    return case.verdict(
        "INVALID_SETUP",
        "high",
        f"The set-up cannot work{more}: {first.message.rstrip('.')}.",
        first.remedy,
    )


def privileged_text(case: Case) -> Verdict | None:
    """The teacher is told something of each prompt that nobody tells the student in use."""
    found = [one for one in _refusals(case) if one.code == PRIVILEGED]
    if not found:
        return None
    return case.verdict("OPSD_INSTANCE_PI", "high", found[0].message, found[0].remedy)


def malformed_student(case: Case) -> Verdict | None:
    """Rollouts that repeat themselves, never end or are garbled teach nothing about the prompts."""
    limits = case.limits
    repeats = case.readings.side("repetition_rate", limits.malformed_repetition) == "above"
    cut = case.readings.value("truncation_rate")
    # Of a few rollouts that all are cut no interval lies above the limit, and still all are.
    endless = cut is not None and (
        cut == 1 or case.readings.side("truncation_rate", limits.malformed_truncation) == "above"
    )
    if not (repeats or endless):
        return _garbled(case)
    confidence: Confidence = "low" if case.few else "high" if repeats else "medium"
    return case.verdict(
        "STUDENT_MALFORMED",
        confidence,
        f"Of the student's rollouts a share of {case.figure('repetition_rate')} repeats itself and "
        f"{case.figure('truncation_rate')} is cut before it ends.",
        "Train it on whole responses first, or raise max_response_tokens if they are only long.",
        case.evidence("descendant", "repetition_rate", "truncation_rate", "response_tokens_mean"),
    )


def _garbled(case: Case) -> Verdict | None:
    """Apart from the teacher, and unsure of its own words.

    A student of another manner is surer of its text than the teacher, in the laboratory by .2 to 1.1
    nats; one that was damaged by steps at far too high a rate is less sure, by .6.
    """
    teacher = case.readings.value("teacher_entropy")
    if teacher is None or by_overlap(case) != "apart":
        return None
    if case.readings.side("student_entropy", teacher) != "above":
        return None
    return case.verdict(
        "STUDENT_MALFORMED",
        "low",
        f"Both prefer the same token at a share of {case.figure('top1_agreement')}, and of the student's "
        f"own words the student itself is less sure ({case.figure('student_entropy')} nats) than the "
        f"teacher ({case.figure('teacher_entropy')}).",
        "It writes badly rather than in another manner. Some such students have healed by themselves; "
        "training on whole responses first mends the others.",
        case.evidence(
            "descendant",
            "top1_agreement",
            "effective_overlap",
            "student_entropy",
            "teacher_entropy",
        ),
        go="undecided",
    )


def bad_objective(case: Case) -> Verdict | None:
    """Objectives that collapse or oscillate whatever the pair: 2605.11182; 2604.13016, 6.3."""
    stage = case.objective
    if stage is None or stage.form != "top_k":
        return None
    if stage.normalisation == "unnormalised" and stage.divergence == "reverse":
        said = (
            f"The reverse divergence on the top {stage.k}, not normalised, drives probability out "
            "of those tokens; the student collapsed on 8 of 8 seeds in the laboratory."
        )
    elif stage.k == 1:
        said = "A support of k = 1 pushes one token up or down at a time, and its signal spikes."
    else:
        return None
    return case.verdict(
        "BAD_OBJECTIVE",
        "high",
        said,
        "Choose normalisation stop_gradient or renormalised with k of at least 4, or form sampled.",
    )


def _refusals(case: Case) -> list[Finding]:
    return [one for one in case.readings.probe.findings if one.severity == "refusal"]
