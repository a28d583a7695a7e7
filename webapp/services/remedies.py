"""What to do about a verdict: one entry for each code of the verdict table, in words for people.

It knows codes alone; what a verdict rests on, and where that is drawn, others know.
"""

from __future__ import annotations

from typing import NamedTuple


class Remedy(NamedTuple):
    """What helps, most likely first; `by_position` where the charts by position show the cause."""

    text: str
    by_position: bool = False


REMEDIES: dict[str, Remedy] = {
    "INVALID_SETUP": Remedy(
        "Choose a teacher with the student's tokenizer. Where only stop ids, the chat template or the "
        "thinking mode differ, align them on the pair and mask special tokens."
    ),
    "OPSD_INSTANCE_PI": Remedy(
        "Take the privileged text that differs by prompt away from the teacher: give it one rule that "
        "holds for every prompt, or learn from rewards instead."
    ),
    "STUDENT_MALFORMED": Remedy(
        "Stabilise the student first: a short supervised cold start on the teacher's rollouts, until "
        "its responses end by themselves. Then diagnose again."
    ),
    "REGRESSION_RISK": Remedy(
        "Do not start for a new skill: choose a teacher that was trained further than the student, "
        "with rewards for instance. To recover a lost skill, set that goal and guard what must not fall."
    ),
    "PATTERN_MISMATCH": Remedy(
        "Start cold: a short supervised stage on the teacher's rollouts brings the student to its "
        "manner. Else use prompts on which the teacher was trained, or a teacher from the same family."
    ),
    "NO_NEW_KNOWLEDGE": Remedy(
        "Change the teacher: one trained further with rewards, or on data that the student has not "
        "seen. A cold start cannot help, since the knowledge is not there."
    ),
    "HORIZON_RISK": Remedy(
        "Shorten the responses to the depth at which the teacher still helps, and lengthen them later "
        "in a stage of its own.",
        by_position=True,
    ),
    "BAD_OBJECTIVE": Remedy(
        "Choose the stop-gradient or renormalised top-k objective with k of 4 or more (16 is usual), or "
        "the sampled token."
    ),
    "GO": Remedy("Start the run with the recipe's defaults; the monitor keeps watching it."),
    "HEALTHY": Remedy("Let it go on. Stop once alignment and held-out accuracy are both flat."),
    "STALLED_NO_SIGNAL": Remedy(
        "Stop early and change the teacher: it agrees with the student already, so more steps teach "
        "nothing."
    ),
    "STALLED_MISMATCH": Remedy(
        "Stop, and begin again with a cold start on the teacher's rollouts. Start from the weights "
        "before this run: damage done early is not mended later."
    ),
    "OVERWRITE": Remedy(
        "Go back to the checkpoint before accuracy fell. A teacher better than the student ever was can "
        "still teach it in smaller updates; another lacks what the student could do, so mix in prompts "
        "for that skill or choose another teacher."
    ),
    "DEPTH_COLLAPSE": Remedy(
        "Go back to a checkpoint before the decay began, and learn from the positions that are still "
        "sound alone.",
        by_position=True,
    ),
    "REPETITION_COLLAPSE": Remedy(
        "Go back to a checkpoint from before it; it does not heal by itself. Then mix in demonstrations "
        "and hold the student near its start with a KL term."
    ),
    "BIASED_TOPK": Remedy(
        "Go back to a checkpoint from before it and switch the normalisation to stop-gradient or "
        "renormalised."
    ),
    "ENTROPY_COLLAPSE_RISK": Remedy(
        "Mix in prompts from outside the teacher's training, add some forward KL, or raise the "
        "sampling temperature.",
        by_position=True,
    ),
    "AGREEMENT_TRAP": Remedy(
        "Look at incorrect rollouts in the samples, and mask what comes after the point at which both "
        "agree on the mistake."
    ),
    "TOP1_INSTABILITY": Remedy("Raise k to at least 4, 16 is usual, or use the sampled token."),
    "MODE_HACKING": Remedy(
        "Align the thinking modes and chat templates on the pair, and mask special tokens."
    ),
    "HEAVY_TAIL_REWARD": Remedy(
        "Clamp the token reward, mask special tokens, or use the top-k objective, which bounds it.",
        by_position=True,
    ),
}


def of(code: str) -> Remedy:
    """What to do about that code; raises KeyError where the table lacks it."""
    return REMEDIES[code]
