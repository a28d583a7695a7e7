"""Control runs: a pair with itself, turned round, and as it is, each probed and then distilled.

Their diagnoses and outcomes are what a family is calibrated by. It knows neither calibration nor page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from django.db import transaction

from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput
from opdcore.contract.probe import Relation
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.rendering import Rendering
from webapp.models import Pair, PromptSet, Run, User
from webapp.permissions import require
from webapp.services import diagnoses, pairs, recipes, runs, usual_parts
from webapp.services.pairs import TeacherChoice

Kind = Literal["identical", "reverse", "known good"]

RELATIONS: dict[Kind, Relation] = {
    "identical": "identical",
    "reverse": "ancestor",
    "known good": "descendant",
}
MOST_OF_EACH = 3


@dataclass(frozen=True, slots=True)
class ControlPlan:
    """What the controls of a pair are made of; `of_each` runs of each kind, of different seeds."""

    usual: RecipeDocument
    train: PromptSet
    held_out: PromptSet | None
    of_each: int = 1

    @property
    def run_count(self) -> int:
        return self.of_each * len(RELATIONS)

    @property
    def steps(self) -> int:
        """Optimizer steps of all runs."""
        return self.run_count * sum(self.usual.steps_by_stage)

    @property
    def probe_tokens(self) -> int:
        """What the probes of all runs write at most."""
        stage = diagnoses.stage_like(self.usual)
        evaluation, goal = self.usual.evaluation, self.usual.goal
        plan = diagnoses.Plan(self.train, stage, evaluation.verifier, goal.kind)
        return self.run_count * plan.most_tokens

    @property
    def training_tokens(self) -> int:
        """What the students of all runs write at most while they train."""
        return self.run_count * sum(map(_most_tokens, self.usual.stages))


def plan(pair: Pair, *, of_each: int = 1) -> ControlPlan:
    """What the controls would be; raises BadInput with what is missing."""
    _refuse_unfit(pair)
    last = _last_distillation(pair)
    usual = last.recipe.contract if last else diagnoses.usual_recipe(pair)
    train = last.train_set if last else diagnoses.usual_prompts(pair)
    if usual is None or not any(usual.steps_by_stage):
        raise _no_recipe(pair)
    if usual.evaluation.verifier == "none":
        raise _no_verifier(usual)
    if train is None:
        raise BadInput(
            "controls.no_prompts",
            "There are no prompts to train on.",
            remedy="Upload a prompt set.",
            field="prompt_set",
        )
    held_out = last.held_out_set if last else _beside(pair)
    return ControlPlan(usual, train, held_out, of_each)


def launch(pair: Pair, *, actor: User, of_each: int = 1) -> list[Run]:
    """Queues the control runs, all or none; raises BadInput as `plan` and `runs.launch` do."""
    require(actor, "launch", pair.project)
    if not 1 <= of_each <= MOST_OF_EACH:
        raise BadInput(
            "controls.count",
            f"{of_each} runs of each control were asked for.",
            remedy=f"Ask for 1 to {MOST_OF_EACH}.",
            field="of_each",
        )
    planned = plan(pair, of_each=of_each)
    taught = {kind: _pair_of(kind, pair, actor) for kind in get_args(Kind)}
    with transaction.atomic():
        return list(_launched(taught, planned, actor))


def document_of(kind: Kind, usual: RecipeDocument, *, seed: int) -> RecipeDocument:
    """The usual recipe after a whole probe, which the relation is stated in."""
    probe = diagnoses.stage_like(usual).model_copy(
        # What is measured once for many runs is measured in full.
        update={"relation": RELATIONS[kind], "budget_share": None}
    )
    trained = tuple(stage for stage in usual.stages if stage.kind != "diagnose")
    name = recipe_name(kind, usual)
    return usual.model_copy(update={"name": name, "stages": (probe, *trained), "seed": seed})


def recipe_name(kind: Kind, usual: RecipeDocument) -> str:
    """Such as `Sums (reverse control)`; the usual recipe may be one of these itself."""
    stem = usual.name
    for one in get_args(Kind):
        stem = stem.removesuffix(f" ({one} control)")
    return f"{stem[:90]} ({kind} control)"


def pair_name(kind: Kind, pair: Pair) -> str:
    return f"{pair.name[:90]}: {kind} control"


def is_control(pair: Pair) -> bool:
    """Whether the pair was made of another one's models, for its controls."""
    return pair.name.endswith((": identical control", ": reverse control"))


def _launched(taught: dict[Kind, Pair], planned: ControlPlan, actor: User) -> Iterator[Run]:
    for kind, pair in taught.items():
        name = recipe_name(kind, planned.usual)
        before = Run.objects.filter(pair=pair, recipe__name=name).count()
        for number in range(before, before + planned.of_each):
            # A run of the same seed would be the same run again, and widen no range.
            document = document_of(kind, planned.usual, seed=(planned.usual.seed + number) % 2**32)
            yield runs.launch(
                actor=actor,
                project=pair.project,
                pair=pair,
                recipe=recipes.equal_or_saved(document, project=pair.project, actor=actor),
                train=planned.train,
                held_out=planned.held_out,
                name=f"{taught['known good'].name[:90]}: {kind} control {number + 1}",
                relation=Run.Relation.CONTROL,
            )


def _pair_of(kind: Kind, pair: Pair, actor: User) -> Pair:
    """The pair that is taught: itself, or one made of its models, once, in its family."""
    if kind == "known good":
        return pair
    teacher = pair.teachers.all()[0]
    student = (pair.student, pair.student_rendering)
    other = (teacher.model, teacher.rendering)
    sides = (student, student) if kind == "identical" else (other, student)
    name = pair_name(kind, pair)
    found = Pair.objects.filter(project=pair.project, name=name).with_models().first()
    if found is None:
        (model, rendering), (taught_by, its_rendering) = sides
        found = pairs.create(
            name,
            project=pair.project,
            actor=actor,
            student=model,
            student_rendering=Rendering.model_validate(rendering),
            teachers=[TeacherChoice(taught_by, Rendering.model_validate(its_rendering))],
            notes=f"Made of {pair.name}, to calibrate its family.",
        )
    elif [found.student, *(one.model for one in found.teachers.all())] != [
        model for model, _ in sides
    ]:
        raise BadInput(
            "controls.name_taken",
            f"There is a pair named {name!r}, and it is of other models.",
            remedy="Delete that pair, or make this pair anew under another name.",
            field="pair",
        )
    if found.family_id != pair.family_id:
        found.family = pair.family
        found.save(update_fields=["family"])
    return found


def _refuse_unfit(pair: Pair) -> None:
    if is_control(pair):
        raise BadInput(
            "controls.of_control",
            f"{pair.name} is a control itself.",
            remedy="Run the controls from the page of the pair that it was made of.",
            field="pair",
        )
    if pair.family is None:
        raise BadInput(
            "controls.no_family",
            f"{pair.name} is in no family, so its controls would calibrate nothing.",
            remedy="Choose or create a family first.",
            field="family",
        )
    count = pair.teachers.count()
    if count != 1:
        raise BadInput(
            "controls.several_teachers",
            f"{pair.name} has {count} teachers; a control is made of one student and one teacher.",
            remedy="Make a pair with one of them, and put it into the family.",
            field="pair",
        )


def _last_distillation(pair: Pair) -> Run | None:
    related = ("recipe", "train_set", "held_out_set")
    found = Run.objects.filter(pair=pair, train_set__deleted_at__isnull=True)
    rows = found.select_related(*related)[: diagnoses.RUNS_LOOKED_AT]
    return next((run for run in rows if any(run.recipe.contract.steps_by_stage)), None)


def _beside(pair: Pair) -> PromptSet | None:
    named = usual_parts.beside(pair.project, pair).get("held_out", "")
    return PromptSet.objects.filter(public_id=named).first()


def _most_tokens(stage: object) -> int:
    if not isinstance(stage, DistillStage):
        return 0
    rollouts = stage.steps * stage.prompts_per_step * stage.rollouts_per_prompt
    return rollouts * stage.max_response_tokens


def _no_recipe(pair: Pair) -> BadInput:
    return BadInput(
        "controls.no_recipe",
        f"{pair.name} was never distilled, so there is no usual recipe to run.",
        remedy=f"Launch a run of it once, or save a recipe named {pair.name}.",
        field="recipe",
    )


def _no_verifier(usual: RecipeDocument) -> BadInput:
    return BadInput(
        "controls.no_verifier",
        f"The usual recipe, {usual.name}, grades nothing (verifier none), so a control would have "
        "no outcome.",
        remedy="Launch a run of the pair whose recipe has a verifier and a held-out set.",
        field="recipe",
    )
