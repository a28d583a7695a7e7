"""What helps where training by another recipe does not: by verdict, the likeliest first."""

from __future__ import annotations

from opdcore.contract.rescue import History, Offer, OfferKind
from opdcore.contract.verdicts import Verdict

_NOTHING_NEW: tuple[OfferKind, ...] = ("other_teacher", "reinforce")
_APART: tuple[OfferKind, ...] = ("align_rendering", "other_teacher")
OFFERED: dict[str, tuple[OfferKind, ...]] = {
    "INVALID_SETUP": ("map_tokens", "align_rendering"),
    "OPSD_INSTANCE_PI": ("shared_text", "reinforce"),
    "REGRESSION_RISK": _NOTHING_NEW,
    "NO_NEW_KNOWLEDGE": _NOTHING_NEW,
    "STALLED_NO_SIGNAL": _NOTHING_NEW,
    "OVERWRITE": ("keep_checkpoint", "other_teacher", "reinforce"),
    "PATTERN_MISMATCH": _APART,
    "STALLED_MISMATCH": _APART,
    "MODE_HACKING": ("align_rendering",),
}
WHY: dict[OfferKind, str] = {
    "other_teacher": "A teacher that was trained further, with rewards or on other data, brings what "
    "this one lacks.",
    "reinforce": "Trained with rewards by a verifier, a model of the student's own size becomes a "
    "teacher that has something new and thinks as the student does.",
    "align_rendering": "Student and teacher read prompts by different templates; give both sides the "
    "same one on the pair.",
    "map_tokens": "Token ids must mean the same on both sides: choose a teacher with the student's "
    "tokenizer.",
    "shared_text": "Give the teacher one text that holds for every prompt: what differs by prompt "
    "cannot be learned.",
    "keep_checkpoint": "The student was better before; the checkpoint of its highest held-out accuracy "
    "is still there.",
}


def of(verdict: Verdict, history: History) -> tuple[Offer, ...]:
    """The offers that this run can make use of."""
    kinds = OFFERED.get(verdict.code, ())
    return tuple(Offer(kind=kind, why=WHY[kind]) for kind in kinds if _useful(kind, history))


def _useful(kind: OfferKind, history: History) -> bool:
    if kind == "reinforce":
        return history.verifier
    if kind == "align_rendering":
        return not history.same_rendering
    return kind != "keep_checkpoint" or history.best is not None
