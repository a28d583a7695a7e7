"""The proof: whether a rescue worked, by the outcome function and against the failing arm.

A rescue counts where parent and child together succeed as any run does, from the parent's first student
to the child's last, and the child's student is better than its parent's (and than the control arm's,
where one was run) on the same held-out prompts beyond chance.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.outcome import Outcome, Scores, judge

ProofCode = Literal["rescued", "partly", "not_rescued", "inconclusive", "unmeasured"]


class Proof(Document):
    """What became of a rescue; `against_parent` compares both arms' students at their ends."""

    code: ProofCode = Field(description="What became of it.")
    explanation: str = Field(description="Why, in plain words.")
    outcome: Outcome = Field(
        description="From the parent's start to the child's end; the child's own where its parent "
        "measured no start."
    )
    against_parent: Outcome | None = Field(
        default=None, description="From the parent's end to the child's; null where not measured."
    )
    against_control: Outcome | None = Field(
        default=None, description="From the control arm's end to the child's; null without one."
    )


def prove(
    child: Outcome,
    *,
    before_scores: Scores = (),
    child_scores: Scores = (),
    parent_scores: Scores = (),
    control_scores: Scores = (),
    teacher_scores: Scores | None = None,
) -> Proof:
    """Judges a rescue by the child's outcome and the arms' per-prompt scores at their ends.

    Scores are of the same held-out prompts in the same order (None where abstained): `before_scores` of
    the parent's first student, the others of each arm's last. An arm without any is left out.
    """
    outcome = child
    if before_scores and child_scores:
        outcome = judge(before_scores, child_scores, teacher_scores)
    arms = {
        name: judge(scores, child_scores, teacher_scores)
        for name, scores in (
            ("against_parent", parent_scores),
            ("against_control", control_scores),
        )
        if scores and child_scores
    }
    code, why = _judged(outcome, arms)
    return Proof(code=code, explanation=why, outcome=outcome, **arms)


def _judged(outcome: Outcome, arms: dict[str, Outcome]) -> tuple[ProofCode, str]:
    if outcome.code in ("unmeasured", "inconclusive"):
        return outcome.code, outcome.explanation
    if outcome.code not in ("success", "partial"):
        return "not_rescued", outcome.explanation
    unproven = [name for name, arm in arms.items() if arm.gain_low is None or arm.gain_low <= 0]
    if unproven:
        which = "the control arm's" if "against_control" in unproven else "its parent's"
        arm = arms[unproven[0]]
        shown = arm.smallest_detectable_gain
        told = "" if shown is None else f"; this held-out set shows gains above {shown:.3f}"
        return "inconclusive", f"The student is not better than {which} beyond chance{told}."
    return ("rescued" if outcome.code == "success" else "partly"), outcome.explanation
