"""Rescues: a failing run's plan, and the child run that is launched from it once it is accepted.

The parent is only read. What answers which verdict, `opdcore.rescue` decides; whether a rescue
worked, `proofs` says. It knows no form.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import structlog
from django.core.exceptions import PermissionDenied
from django.db import transaction

from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.recipe import TrainingStage
from opdcore.contract.reinforce import ReinforceStage
from opdcore.contract.rescue import RescuePlan, Spot
from opdcore.rescue import plan
from webapp.models import Run, User
from webapp.permissions import require
from webapp.services import audit, histories, recipes, runs, starts
from webapp.services.asked_parts import AskedParts

log = structlog.get_logger(__name__)

# The error with which a job ends that its recipe stops once it is failing.
STOPPED = "run.failing"
# What reinforcement takes over from the distillation: how long it is, and what fits into memory.
REINFORCED_LIKE = (
    "steps", "prompts_per_step", "max_prompt_tokens", "max_response_tokens", "tuning", "precision",
    "sampling_precision", "micro_batch_tokens", "learning_rate", "lora_learning_rate", "warmup_steps",
)  # fmt: skip


def plan_of(run: Run) -> RescuePlan:
    """The answer to the verdict against a run; raises BadInput where there is nothing to answer."""
    recipe = histories.recipe_of(run)
    _refuse_unfit(run, recipe)
    found = histories.found(run)
    if found is None:
        raise _no_verdict(run)
    return plan(found.verdict, recipe, histories.of(run, found.failing))


def accept(
    run: Run,
    *,
    actor: User,
    document: RecipeDocument | None = None,
    control: bool = False,
    unattended: bool = False,
) -> Run:
    """Launches the rescue, with its control arm where asked; raises as `runs.launch` does.

    `document` is the plan's recipe as a person left it. All of it is made, or nothing.
    """
    require(actor, "launch", run.project)
    planned = plan_of(run)
    if planned.recipe is None:
        raise _no_cure(run, planned)
    with ExitStack() as stack, transaction.atomic():
        start = stack.enter_context(starts.taken(run, planned.start))
        chosen = document or planned.recipe
        child = _launched(
            run,
            chosen,
            actor=actor,
            name=_free_name(run, "rescued"),
            relation=Run.Relation.RESCUE,
            start=start,
            lineage=_lineage(planned, chosen, unattended=unattended),
        )
        told = {"child": child.public_id, "verdict": planned.verdict.code, "unattended": unattended}
        audit.record(actor, "rescue", project=run.project, about=run, detail=told)
        if control:
            _launch_control(run, child, stack, actor=actor)
    return child


def unattended(run_id: int) -> Run | None:
    """Rescues a run that stopped because it was failing, where its recipe asks for that.

    None where it does not, where so many rescues led to this run already, or where nothing can be
    launched; the audit log then says why.
    """
    run = Run.objects.select_related("project", "pair", "created_by").get(pk=run_id)
    if not _asks_for_rescue(run) or run.created_by is None:
        return None
    try:
        return accept(run, actor=run.created_by, unattended=True)
    except (BadInput, PermissionDenied) as error:
        log.info("not rescued", run=run.public_id, why=str(error))
        detail = {"why": str(error)[:400]}
        audit.record(None, "rescue_declined", project=run.project, about=run, detail=detail)
        return None


def depth(run: Run) -> int:
    """How many rescues in a row led to this run."""
    rescues, one = 0, run
    while one.relation == Run.Relation.RESCUE and one.parent is not None:
        rescues, one = rescues + 1, one.parent
    return rescues


def reinforced(recipe: RecipeDocument) -> RecipeDocument:
    """A recipe that trains a model of the student's size with rewards, as long as the distillation was.

    Its output can be the teacher that distillation needs.
    """
    found = [stage for stage in recipe.stages if isinstance(stage, DistillStage)]
    if not found:
        raise BadInput(
            "rescue.no_distillation",
            f"{recipe.name} distils nothing that a reinforced teacher could take over.",
            remedy="Choose a run that distils.",
            field="reinforce",
        )
    distill = found[0]
    shared = {name: getattr(distill, name) for name in REINFORCED_LIKE}
    return RecipeDocument(
        name=f"{recipe.name[:100]}, reinforced",
        description="Makes a teacher of the student's own size: trained with the verifier's rewards.",
        goal=recipe.goal,
        evaluation=recipe.evaluation,
        stages=(ReinforceStage(**shared),),
        seed=recipe.seed,
    )


def edited(planned: RescuePlan, chosen: RecipeDocument) -> list[dict[str, str | None]]:
    """What a person changed in the plan's recipe, knob by knob."""
    if planned.recipe is None:
        return []
    before, after = (one.model_dump(mode="json") for one in (planned.recipe, chosen))
    return [
        {"path": change.path, "before": change.before, "after": change.after}
        for change in recipes.changes(before, after)
    ]


def _asks_for_rescue(run: Run) -> bool:
    if run.status != Run.Status.FAILED or (run.error or {}).get("code") != STOPPED:
        return False
    stage = histories.recipe_of(run).stages[run.stage_index or 0]
    if not isinstance(stage, DistillStage) or stage.on_failing != "rescue":
        return False
    known = run.children.filter(relation=Run.Relation.RESCUE).exists()
    return not known and depth(run) < stage.rescues


def _launched(run: Run, document: RecipeDocument, *, actor: User, **how: Any) -> Run:  # noqa: ANN401 (of runs.launch)
    """A child of the run, of the same pair, prompt sets and resources."""
    recipe = recipes.equal_or_saved(document, project=run.project, actor=actor)
    return runs.launch(
        actor=actor,
        project=run.project,
        pair=run.pair,
        recipe=recipe,
        train=run.train_set,
        held_out=run.held_out_set,
        asked=AskedParts.of_run(run).for_recipe(document),
        resources=run.resources,
        parent=run,
        **how,
    )


def _lineage(planned: RescuePlan, chosen: RecipeDocument, *, unattended: bool) -> dict[str, Any]:
    """Why the child is as it is: what was answered, what was changed and why, by whom."""
    return {
        "plan": planned.model_dump(mode="json", exclude={"recipe"}),
        "edited": edited(planned, chosen),
        "unattended": unattended,
    }


def _launch_control(run: Run, child: Run, stack: ExitStack, *, actor: User) -> Run:
    """The parent's recipe, continued from its newest checkpoint for as many steps as the rescue takes.

    Where no checkpoint can be started from, it begins again, with the parent's steps on top.
    """
    recipe = histories.recipe_of(run)
    spot = _newest(run, recipe)
    steps = child.steps_total if spot else child.steps_total + run.step
    return _launched(
        run,
        continued(recipe, spot, steps=steps),
        actor=actor,
        name=_free_name(run, "control"),
        relation=Run.Relation.CONTROL,
        start=stack.enter_context(starts.taken(run, spot)),
        lineage={"control_of": child.public_id},
    )


def continued(recipe: RecipeDocument, spot: Spot | None, *, steps: int) -> RecipeDocument:
    """The recipe from a checkpoint on, its distillation so many steps long, and never stopped."""
    before = spot.stage_index if spot else 0
    selected = recipe.selection_of(before)
    choice = [] if selected is None else [recipe.stages[selected]]
    stages = [*choice, *recipe.stages[before:]]
    last = max(at for at, stage in enumerate(stages) if isinstance(stage, DistillStage))
    others = sum(
        stage.steps
        for at, stage in enumerate(stages)
        if isinstance(stage, TrainingStage) and at != last
    )
    distill = stages[last].model_dump()
    left = max(1, steps - others)
    warmup = 0 if spot else min(distill["warmup_steps"], left)
    stages[last] = DistillStage.model_validate(
        distill | {"steps": left, "warmup_steps": warmup, "on_failing": "continue"}
    )
    name = f"{recipe.name[:100]}, continued"
    return RecipeDocument.model_validate(
        recipe.model_dump() | {"name": name, "stages": [stage.model_dump() for stage in stages]}
    )


def _newest(run: Run, recipe: RecipeDocument) -> Spot | None:
    """The newest checkpoint of full weights in a stage that distils."""
    fit = [
        spot
        for spot in starts.kept(run)
        if isinstance(stage := recipe.stages[spot.stage_index], DistillStage)
        and stage.tuning == "full"
    ]
    return fit[-1] if fit else None


def _free_name(run: Run, what: str) -> str:
    """Such as `sums, rescued`; with a number, from the second one on."""
    name = f"{run.name[:104]}, {what}"
    known = Run.objects.filter(project=run.project, name__startswith=name).count()
    return f"{name} {known + 1}" if known else name


def _refuse_unfit(run: Run, recipe: RecipeDocument) -> None:
    if not any(recipe.steps_by_stage):
        raise BadInput(
            "rescue.trains_nothing",
            f"{run.name} trains nothing, so there is nothing to rescue.",
            remedy="Launch a run of its pair; what a diagnosis found goes into that run's plan.",
            field="run",
        )
    if (run.outcome or {}).get("code") == "success":
        raise BadInput(
            "rescue.succeeded",
            f"{run.name} succeeded.",
            remedy="There is nothing to rescue. Clone it to run it again.",
            field="run",
        )


def _no_verdict(run: Run) -> BadInput:
    if run.health is not None and not run.has_ended:
        return BadInput(
            "rescue.healthy",
            f"{run.name} is healthy so far.",
            remedy="Let it go on. The monitor says so here once it fails.",
            field="run",
        )
    if not run.has_ended:
        return BadInput(
            "rescue.too_early",
            f"Nothing is known of {run.name} yet.",
            remedy="Wait until the monitor has seen enough steps to tell.",
            field="run",
        )
    return BadInput(
        "rescue.no_verdict",
        f"Nobody knows why {run.name} came to no more: neither its monitor nor a diagnosis says.",
        remedy="Diagnose its pair on the same prompts, then come back; an error of the machine needs no "
        "other recipe, only a resume.",
        field="run",
    )


def _no_cure(run: Run, planned: RescuePlan) -> BadInput:
    better: Sequence[str] = [offer.why for offer in planned.offers]
    return BadInput(
        "rescue.no_cure",
        f"Another recipe does not help {run.name}: {planned.verdict.code}.",
        remedy=better[0] if better else "Choose another teacher or other prompts.",
        field="run",
    )
