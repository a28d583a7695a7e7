"""What a plan offers besides or instead of a recipe, with where in the application it is done.

It knows no verdict: the plan says what helps, this module what of it is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.urls import reverse
from django.utils.http import urlencode

from opdcore.contract.rescue import Offer, OfferKind, RescuePlan
from webapp.models import Pair, Run
from webapp.services import diagnoses, histories

TITLES: dict[OfferKind, str] = {
    "other_teacher": "Another teacher",
    "reinforce": "Train a teacher of the student's own size with rewards",
    "align_rendering": "The same template for both sides",
    "map_tokens": "A teacher with the student's tokenizer",
    "shared_text": "One text for every prompt",
    "keep_checkpoint": "Keep what the student was",
}


@dataclass(frozen=True, slots=True)
class Way:
    """A place in the application where the offer is taken up; `note` says what is known of it."""

    address: str
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """An offer with the ways to it; without any, its words alone help."""

    kind: OfferKind
    title: str
    why: str
    ways: tuple[Way, ...]


def of(run: Run, planned: RescuePlan) -> list[Shown]:
    """The plan's offers, the likeliest first."""
    return [
        Shown(offer.kind, TITLES[offer.kind], offer.why, _ways(run, planned, offer))
        for offer in planned.offers
    ]


def _ways(run: Run, planned: RescuePlan, offer: Offer) -> tuple[Way, ...]:
    if offer.kind == "other_teacher":
        return _teachers(run, planned)
    if offer.kind == "keep_checkpoint":
        best = histories.of(run, None).best
        note = f"after step {best.step}" if best else ""
        address = f"{reverse('run', args=[run.public_id])}#artifacts"
        return (Way(address, "Open its checkpoints", note),)
    if offer.kind == "reinforce":
        address = f"{reverse('recipe-new')}?{urlencode({'reinforce': run.public_id})}"
        note = "save it and run it on this pair; then register its output as a teacher"
        return (Way(address, "Open its recipe", note),)
    return (Way(reverse("pair", args=[run.pair.public_id]), f"Open the pair {run.pair.name}"),)


def _teachers(run: Run, planned: RescuePlan) -> tuple[Way, ...]:
    """Runs with teachers that diagnosed better; else pairs that nobody diagnosed; else a new pair."""
    goal = histories.recipe_of(run).goal.kind
    better = diagnoses.better(run.pair, run.train_set, goal=goal, than=planned.verdict.go)
    if better:
        return tuple(_with(run, row.pair, f"its diagnosis: {row.code}") for row in better)
    others = Pair.objects.filter(project=run.project, student=run.pair.student)
    open_ones = others.exclude(pk=run.pair_id).filter(diagnoses__isnull=True)[:5]
    asked = tuple(
        Way(f"{reverse('pair', args=[pair.public_id])}#diagnose", f"Diagnose {pair.name}")
        for pair in open_ones
    )
    return asked or (Way(reverse("pair-new"), "Make a pair with another teacher"),)


def _with(run: Run, pair: Pair, note: str) -> Way:
    parts = {"pair": pair.public_id, "train": run.train_set.public_id, "from": run.public_id}
    if run.held_out_set is not None:
        parts["held_out"] = run.held_out_set.public_id
    return Way(f"{reverse('run-new')}?{urlencode(parts)}", f"New run with {pair.name}", note)
