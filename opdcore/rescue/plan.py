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
from opdcore.rescue.draft import Draft

DOUBT = (
    "The verdict has low confidence, so the cause may be another; diagnose the pair with more prompts, "
    "or run the control arm beside the rescue."
)


def plan(verdict: Verdict, recipe: Recipe, history: History) -> RescuePlan:
    """Answers a verdict; the plan has no recipe where training is not the cure."""
    cure = cures.CURES.get(verdict.code)
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
