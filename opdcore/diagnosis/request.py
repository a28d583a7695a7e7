"""What the command line asks of a diagnosis, as documents: stage, question, pair, prompts.

It reads folders and files, and needs no torch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opdcore import calibration, documents, prompts
from opdcore.contract.distill import DistillStage
from opdcore.contract.errors import BadInput
from opdcore.contract.evaluation import Evaluation, Goal
from opdcore.contract.job import Job, PromptFile
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.prompt import Prompt
from opdcore.contract.recipe import Recipe
from opdcore.contract.rendering import Rendering
from opdcore.diagnosis.question import Question
from opdcore.diagnosis.setup import Side
from opdcore.inspection import inspect
from opdcore.rendering import Renderer

# The option that sets each knob of the stage.
OPTIONS = {
    "relation": "relation",
    "tiers": "tiers",
    "prompts": "prompts_count",
    "rollouts_per_prompt": "rollouts_per_prompt",
    "max_response_tokens": "max_response_tokens",
    "temperature": "temperature",
}
# The job renders all its rows, since it is not known yet which of them were dumped.
_ALL_PROMPTS = 65_536


@dataclass(frozen=True)
class Request:
    """The command's arguments; `rollouts` is None where they are to be sampled."""

    student: Side
    teacher: Side
    prompts_file: Path
    prompts: tuple[Prompt, ...]
    stage: DiagnoseStage
    evaluation: Evaluation
    question: Question
    seed: int
    rollouts: Path | None

    def job(self) -> Job:
        """The job that opens models, prompts and verifier for the probe."""
        stage = self.stage
        if self.rollouts is not None:
            stage = stage.model_copy(update={"prompts": _ALL_PROMPTS})
        recipe = Recipe(
            name="diagnosis",
            goal=self.question.goal,
            evaluation=self.evaluation,
            stages=(stage,),
            seed=self.seed,
        )
        student, teacher = (
            {"model": {"kind": "local", "path": str(side.folder)}}
            for side in (self.student, self.teacher)
        )
        return Job.model_validate(
            {
                "run_id": "diagnosis",
                "student": student,
                "teachers": [teacher],
                "prompt_sets": {"train": {"path": str(self.prompts_file)}},
                "recipe": recipe.model_dump(),
            }
        )


def of(arguments: argparse.Namespace) -> Request:
    """The request; raises BadInput that names the option at fault."""
    recipe = documents.read(Recipe, arguments.recipe) if arguments.recipe else None
    rows = prompts.read(PromptFile(path=str(arguments.prompts)), field="--prompts")
    student, teacher = (
        Side(folder, Renderer.from_folder(folder, Rendering()))
        for folder in (arguments.student, arguments.teacher)
    )
    knobs = _knobs(arguments, recipe)
    if "max_response_tokens" not in knobs:
        knobs["max_response_tokens"] = _fitting((student, teacher), rows)
    return Request(
        student=student,
        teacher=teacher,
        prompts_file=arguments.prompts,
        prompts=rows,
        stage=_stage(knobs),
        evaluation=_evaluation(arguments, recipe),
        question=_question(arguments, recipe),
        seed=recipe.seed if recipe else 0,
        rollouts=arguments.rollouts,
    )


def _knobs(arguments: argparse.Namespace, recipe: Recipe | None) -> dict[str, Any]:
    """The stage's knobs: the recipe's diagnosis or else what its distillation samples by, and options."""
    stages = recipe.stages if recipe else ()
    own = next((one for one in stages if isinstance(one, DiagnoseStage)), None)
    planned = next((one for one in stages if isinstance(one, DistillStage)), None)
    knobs: dict[str, Any] = {}
    if own is not None:
        knobs = own.model_dump()
    elif planned is not None:
        shared = ("temperature", "max_prompt_tokens", "max_response_tokens")
        knobs = {name: getattr(planned, name) for name in shared}
    for knob, option in OPTIONS.items():
        given = getattr(arguments, option)
        if given is not None:
            knobs[knob] = given.split(",") if knob == "tiers" else given
    # Whoever counts the prompts has decided what the probe may cost.
    return knobs | ({"budget_share": None} if arguments.prompts_count else {})


def _stage(knobs: dict[str, Any]) -> DiagnoseStage:
    try:
        return DiagnoseStage.model_validate(knobs)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        knob = str(first["loc"][0])
        option = f"--{OPTIONS[knob].replace('_', '-')}" if knob in OPTIONS else knob
        raise BadInput(
            "diagnose.option",
            f"{first['msg']}, found {str(first['input'])[:80]!r}.",
            remedy="`python -m opdcore schema recipe` lists the bounds of every knob.",
            field=option,
        ) from error


def _fitting(sides: tuple[Side, Side], rows: tuple[Prompt, ...]) -> int:
    """The knob's default, or as much as both contexts leave after the longest prompt."""
    longest: int = DiagnoseStage.model_fields["max_response_tokens"].default
    for side in sides:
        context = inspect(side.folder).context_length
        if context is not None:
            rendered = side.renderer.render_many(rows)
            longest = min(longest, context - max(len(one.ids) for one in rendered))
    return max(1, longest)


def _evaluation(arguments: argparse.Namespace, recipe: Recipe | None) -> Evaluation:
    evaluation = recipe.evaluation if recipe else Evaluation()
    if arguments.verifier is None:
        return evaluation
    return evaluation.model_copy(update={"verifier": arguments.verifier})


def _question(arguments: argparse.Namespace, recipe: Recipe | None) -> Question:
    goal = recipe.goal if recipe else Goal()
    if arguments.goal is not None:
        goal = goal.model_copy(update={"kind": arguments.goal})
    stages = recipe.stages if recipe else ()
    planned = tuple(one for one in stages if isinstance(one, DistillStage))
    if arguments.calibration is None:
        return Question(goal, planned, calibration.laboratory())
    own = calibration.read(arguments.calibration)
    # Whoever names a calibration says that the pair is of its family.
    return Question(goal, planned, own, family=own.family)
