"""Diagnoses of pairs: kept when a job reports one, launched from a few choices, read as a matrix.

A diagnosis is a run like any other, whose recipe has one stage. What it measures and how it is
judged, this module does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction

from opdcore.contract.evaluation import Evaluation, Goal, GoalKind, VerifierName
from opdcore.contract.probe import DiagnoseStage, Diagnosis
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.verdicts import Go
from webapp.models import (
    Pair,
    PairDiagnosis,
    Project,
    PromptSet,
    Recipe,
    RegisteredModel,
    Run,
    User,
)
from webapp.services import lineage, recipes, runs, usual_parts

RECIPE_NAME = "Diagnosis"
# So many of a pair's newest runs are looked through for those that diagnose.
RUNS_LOOKED_AT = 200
# Of a rollout, what student and teacher write from 25, 50 and 75 % of it: .75 + .5 + .25 each.
CONTINUED = 3.0
RANKS: dict[Go, int] = {"go": 0, "undecided": 1, "no_go": 2}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a diagnosis looks at, and what its verdict is for."""

    prompt_set: PromptSet
    stage: DiagnoseStage
    verifier: VerifierName
    goal: GoalKind

    @property
    def most_tokens(self) -> int:
        """What both sides write at most: rollouts of each, and with a verifier the continuations."""
        stage = self.stage
        prompts = min(stage.prompts, self.prompt_set.rows)
        rollouts = prompts * stage.rollouts_per_prompt * stage.max_response_tokens
        return round(rollouts * (2 + (CONTINUED if "hand_off" in stage.tiers else 0)))


@dataclass(frozen=True, slots=True)
class Cell:
    """A student met by a teacher: the pair, if there is one, and its newest diagnosis."""

    student: RegisteredModel
    teacher: RegisteredModel
    pair: Pair | None
    diagnosis: PairDiagnosis | None
    others: int = 0
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One student before all teachers."""

    student: RegisteredModel
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Matrix:
    """All students by all teachers of a project's pairs."""

    teachers: list[RegisteredModel]
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Latest:
    """A diagnosis as a list shows it."""

    row: PairDiagnosis
    is_stale: bool


def keep(run_id: int, diagnosis: Diagnosis, *, at: datetime) -> None:
    """Makes this the pair's newest diagnosis for its prompt set and goal, unless one is newer."""
    related = ("pair", "recipe", "train_set")
    run = Run.objects.select_related(*related).get(pk=run_id)
    goal = run.recipe.contract.goal.kind
    of: dict[str, Any] = {"pair": run.pair, "prompt_set": run.train_set, "goal": goal}
    if PairDiagnosis.objects.filter(**of, diagnosed_at__gt=at).exists():
        return
    verdict = diagnosis.verdict
    PairDiagnosis.objects.update_or_create(
        **of,
        defaults={
            "run": run,
            "code": verdict.code,
            "verdict": verdict.model_dump(mode="json"),
            "calibration": diagnosis.calibration[:200],
            "prompts": diagnosis.probe.prompts,
            "weights": _weights([run.snapshot["student"], *run.snapshot["teachers"]]),
            "diagnosed_at": at,
        },
    )


@transaction.atomic
def launch(pair: Pair, plan: Plan, *, actor: User) -> Run:
    """Queues a run that only diagnoses; raises as `runs.launch` does."""
    return runs.launch(
        actor=actor,
        project=pair.project,
        pair=pair,
        recipe=recipes.equal_or_saved(document_of(pair, plan), project=pair.project, actor=actor),
        train=plan.prompt_set,
        name=f"{pair.name[:100]}: diagnosis",
    )


def document_of(pair: Pair, plan: Plan) -> RecipeDocument:
    """The recipe of a diagnosis: one stage, graded as the pair's distillations are."""
    usual = usual_recipe(pair)
    evaluation = usual.evaluation if usual else Evaluation()
    return RecipeDocument(
        name=RECIPE_NAME,
        goal=Goal(kind=plan.goal),
        evaluation=evaluation.model_copy(update={"verifier": plan.verifier}),
        stages=(plan.stage,),
    )


def stage_like(usual: RecipeDocument | None) -> DiagnoseStage:
    """A diagnosis that samples and compares as that recipe's first distillation does."""
    stages = usual.stages if usual else ()
    distil = next((stage for stage in stages if stage.kind == "distill"), None)
    if distil is None:
        return DiagnoseStage()
    shared = ("k", "temperature", "max_prompt_tokens", "max_response_tokens")
    return DiagnoseStage(**{name: getattr(distil, name) for name in shared})


def usual_recipe(pair: Pair) -> RecipeDocument | None:
    """The recipe of the pair's last run that distils, else the one that bears its name."""
    used = Run.objects.filter(pair=pair).select_related("recipe")[:RUNS_LOOKED_AT]
    documents = (run.recipe.contract for run in used)
    last = next((one for one in documents if any(one.steps_by_stage)), None)
    if last is not None:
        return last
    named = pair.name.partition(":")[0]
    found = Recipe.objects.filter(project=pair.project, name=named).newest().first()
    return found.contract if found else None


def usual_plan(pair: Pair) -> Plan | None:
    """The diagnosis that the form offers; None where there are no prompts yet."""
    prompts = usual_prompts(pair)
    if prompts is None:
        return None
    usual = usual_recipe(pair)
    verifier = usual.evaluation.verifier if usual else "none"
    tiers = ("static", "scored") if verifier == "none" else ("static", "scored", "hand_off")
    known = {"tiers": tiers, "relation": lineage.relation(pair)}
    stage = stage_like(usual).model_copy(update=known)
    return Plan(prompts, stage, verifier, usual.goal.kind if usual else "acquire")


def usual_prompts(pair: Pair) -> PromptSet | None:
    """The prompts that the pair's last run trained on, else those of its laboratory family."""
    last = Run.objects.filter(pair=pair, train_set__deleted_at__isnull=True).first()
    if last is not None:
        return last.train_set
    named = usual_parts.beside(pair.project, pair).get("train", "")
    return PromptSet.objects.filter(public_id=named).first()


def latest(pair: Pair) -> list[Latest]:
    """The newest diagnosis for each prompt set and goal, newest first."""
    now = weights_now(pair)
    rows = PairDiagnosis.objects.filter(pair=pair).with_parts()
    return [Latest(row, is_stale(row, now)) for row in rows]


def better(pair: Pair, prompt_set: PromptSet, *, goal: GoalKind, than: Go) -> list[PairDiagnosis]:
    """Diagnoses of the same student on these prompts with other teachers that ended better."""
    rows = PairDiagnosis.objects.filter(
        pair__student=pair.student, prompt_set=prompt_set, goal=goal
    ).exclude(pair=pair)
    ranks = {row: RANKS[row.contract.go] for row in rows.select_related("pair")}
    return sorted((row for row in ranks if ranks[row] < RANKS[than]), key=lambda row: ranks[row])


def runs_behind(pair: Pair) -> list[Run]:
    """The pair's newest runs that diagnose, finished or not."""
    found = Run.objects.filter(pair=pair).select_related("recipe", "train_set", "created_by")
    kinds = {"diagnose"}
    return [
        run
        for run in found.defer("snapshot", "notes")[:RUNS_LOOKED_AT]
        if kinds & {stage["kind"] for stage in run.recipe.document["stages"]}
    ]


def matrix(project: Project) -> Matrix:
    """Every student of the project's pairs before every teacher, with the newest diagnosis of each."""
    pairs = list(Pair.objects.filter(project=project).with_models())
    found = _by_pair(project)
    met = {(pair.student_id, one.model_id): pair for pair in reversed(pairs)
           for one in pair.teachers.all()}  # fmt: skip
    diagnosed = [pair for pair in pairs if found.get(pair.pk)]
    diagnosed.sort(key=lambda pair: found[pair.pk][0].diagnosed_at)
    met |= {(pair.student_id, one.model_id): pair for pair in diagnosed
            for one in pair.teachers.all()}  # fmt: skip
    students = _named({pair.student for pair in pairs})
    teachers = _named({one.model for pair in pairs for one in pair.teachers.all()})
    rows = [
        Row(student, [_cell(student, teacher, met, found) for teacher in teachers])
        for student in students
    ]
    return Matrix(teachers, rows)


def weights_now(pair: Pair) -> str:
    """What tells the pair's present weights from others, as far as their headers do."""
    models = [pair.student, *(one.model for one in pair.teachers.all())]
    return _weights([{"card": model.card} for model in models])


def is_stale(row: PairDiagnosis, now: str) -> bool:
    """Whether a model's weights are others than those that were diagnosed."""
    return bool(row.weights and now and row.weights != now)


def _weights(sides: Sequence[dict[str, Any]]) -> str:
    """Empty where one of the models was never inspected."""
    cards = [side["card"] for side in sides]
    return "" if None in cards else " ".join(card["weights_fingerprint"] for card in cards)


def _by_pair(project: Project) -> dict[int, list[PairDiagnosis]]:
    found: dict[int, list[PairDiagnosis]] = {}
    for row in PairDiagnosis.objects.filter(pair__project=project).with_parts():
        found.setdefault(row.pair_id, []).append(row)
    return found


def _named(models: set[RegisteredModel]) -> list[RegisteredModel]:
    return sorted(models, key=lambda model: (model.name, model.pk))


def _cell(
    student: RegisteredModel,
    teacher: RegisteredModel,
    met: dict[tuple[int, int], Pair],
    found: dict[int, list[PairDiagnosis]],
) -> Cell:
    pair = met.get((student.pk, teacher.pk))
    rows = found.get(pair.pk, []) if pair else []
    if pair is None or not rows:
        return Cell(student, teacher, pair, None)
    stale = is_stale(rows[0], weights_now(pair))
    return Cell(student, teacher, pair, rows[0], others=len(rows) - 1, is_stale=stale)
