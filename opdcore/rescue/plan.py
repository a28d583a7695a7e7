"""The plan: what answers a verdict, by its code.

A cure that trains becomes a recipe; where training does not help, what does is offered, and a cold
start is never sold as new knowledge (2604.13016, 5: that is a property of the teacher).
"""

from __future__ import annotations

from opdcore.contract.distill import DistillStage
from opdcore.contract.recipe import Recipe
from opdcore.contract.rescue import History, RescuePlan
from opdcore.contract.verdicts import Verdict
from opdcore.rescue import cures, offers
from opdcore.rescue.cures import Cure
from opdcore.rescue.draft import Draft

# Effective overlap of the first steps below which both sides never agreed; our choice.
APART = 0.6
# In accuracy; our choice.
CLEARLY = 0.1
# What may only be a consequence of that.
FOLLOWING = (
    "HORIZON_RISK", "DEPTH_COLLAPSE", "REPETITION_COLLAPSE", "MODE_HACKING", "OVERWRITE"
)  # fmt: skip
DOUBT = (
    "The verdict has low confidence, so the cause may be another; diagnose the pair with more prompts, "
    "or run the control arm beside the rescue."
)


def plan(verdict: Verdict, recipe: Recipe, history: History) -> RescuePlan:
    """Answers a verdict; the plan has no recipe where training is not the cure."""
    cure = _cure(verdict, history)
    index = _stage_index(recipe, history)
    offered = offers.of(verdict, history)
    if cure is None or index is None:
        return RescuePlan(verdict=verdict, recipe=None, offers=offered)
    draft = Draft(recipe, index)
    told = cure(draft, verdict, history)
    child, changes = draft.finished()
    if not changes:
        return RescuePlan(verdict=verdict, recipe=None, offers=offered, cautions=told.cautions)
    return RescuePlan(
        verdict=verdict,
        recipe=child,
        start=draft.start,
        changes=changes,
        expected=told.expected,
        offers=offered,
        cautions=(*told.cautions, *_doubts(verdict)),
    )


def _cure(verdict: Verdict, history: History) -> Cure | None:
    """The code's own cure, unless the history says that the code is a consequence of something else.

    A collapse follows where both sides never agreed, or agreed up to a depth alone; and a teacher that
    is better than the student ever was does not lack what the student has, whatever is unlearned.
    """
    if verdict.code == "OVERWRITE" and not _better(history):
        return None
    if verdict.code in FOLLOWING and _apart(history):
        return cures.start_cold
    return cures.CURES.get(verdict.code)


def _apart(history: History) -> bool:
    """Whether both sides differed from the first step on, everywhere or from a depth on."""
    low = history.start_overlap is not None and history.start_overlap < APART
    return low or history.parted_tokens is not None


def _better(history: History) -> bool:
    """Whether the teacher is clearly better than the student was at its best."""
    teacher, best = history.teacher_accuracy, history.best_accuracy
    return teacher is not None and best is not None and teacher - best > CLEARLY


def _stage_index(recipe: Recipe, history: History) -> int | None:
    """The stage that fails: where the run was called failing, else the first that distils."""
    if history.failing is not None:
        return history.failing.stage_index
    places = [i for i, stage in enumerate(recipe.stages) if isinstance(stage, DistillStage)]
    return places[0] if places else None


def _doubts(verdict: Verdict) -> tuple[str, ...]:
    """What weak evidence means for the plan."""
    if verdict.confidence != "low":
        return ()
    return (DOUBT,)
