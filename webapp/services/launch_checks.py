"""What speaks against a launch, told before anything starts: each with the field at fault."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings

from opdcore.contract import needs
from opdcore.contract.document import experimental_uses
from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.recipe import Stage
from opdcore.inspection import ModelCard
from opdcore.refusals import resource_faults
from webapp.models import Pair, PromptSet, RegisteredModel
from webapp.services import estimates, scores, serving
from webapp.services.asked_parts import NOTHING_ASKED, AskedParts
from webapp.services.checkpoints import folder_of
from webapp.services.launch_preview import examples, prompts_with, tag_sets
from webapp.services.resources import as_job

# Left free beside a run's own files, for the database and the logs of everything else.
SPARE_DISK_BYTES = 256 << 20


def problems(
    pair: Pair,
    recipe: RecipeDocument,
    *,
    train: PromptSet,
    held_out: PromptSet | None,
    asked: AskedParts = NOTHING_ASKED,
    resources: Mapping[str, Any] | None = None,
    kept_scores: dict[str, Any] | None = None,
) -> list[ErrorInfo]:
    """Everything that would make the run fail, or say nothing, after it started."""
    # A teacher that is replayed may be gone.
    loaded = [pair.student] if scores.is_replay(kept_scores) else _models_of(pair)
    return [
        *(one for model in loaded for one in _of_model(model, "pair")),
        *_of_token_maps(pair, recipe),
        *_of_teachers(pair, recipe),
        *(
            one
            for role, each in _asked_sets(recipe, train, held_out)
            for one in _of_tags(pair, each, role)
        ),
        *_of_prompt_set(train, "train"),
        *(_of_graded(recipe, train) if _only_diagnoses(recipe) else _of_held_out(recipe, held_out)),
        *_of_rewards(recipe, train),
        *_of_asked(recipe, asked),
        *_of_template(pair, recipe, train),
        *_of_stages(pair, recipe),
        *_of_experiments(pair, recipe),
        *serving.problems(pair.project, recipe, resources),
        *scores.problems(pair, recipe, kept_scores),
        *_of_disk(pair, recipe, resources),
        *resource_faults(as_job(resources or {}), serving.roles(resources)),
    ]


def _models_of(pair: Pair) -> list[RegisteredModel]:
    return [pair.student, *(teacher.model for teacher in pair.teachers.all())]


def _of_model(model: RegisteredModel, field: str) -> Iterator[ErrorInfo]:
    if model.state == RegisteredModel.State.ERROR:
        yield ErrorInfo(
            code="launch.model_unusable",
            message=f"The model {model.name} cannot be used.",
            remedy="Open it under Models and mend what its page says.",
            field=field,
        )
        return
    try:
        folder_of(model)
    except BadInput as error:
        # Its folder was allowed when it was registered, and no longer is.
        yield error.info.model_copy(update={"field": field})


def _only_diagnoses(recipe: RecipeDocument) -> bool:
    """Nothing is trained, so that what would spoil a training is a finding."""
    return all(stage.kind == "diagnose" for stage in recipe.stages)


def _of_token_maps(pair: Pair, recipe: RecipeDocument) -> Iterator[ErrorInfo]:
    report = pair.token_map_report
    different = report is not None and report["verdict"] == "different"
    if report is not None and different and not _only_diagnoses(recipe):
        yield ErrorInfo(
            code="pair.token_maps_differ",
            message=report["summary"],
            remedy="Choose a teacher with the student's tokenizer.",
            field="pair",
        )


def _of_teachers(pair: Pair, recipe: RecipeDocument) -> Iterator[ErrorInfo]:
    """What a recipe cannot do with the pair's teachers; the job would refuse it too."""
    teachers = list(pair.teachers.all())
    kinds = {stage.kind for stage in recipe.stages}
    if len(teachers) > 1 and "diagnose" in kinds:
        yield ErrorInfo(
            code="diagnose.several_teachers",
            message=f"{pair.name} has {len(teachers)} teachers; a diagnosis is of a student and one "
            "teacher.",
            remedy="Choose a recipe without the stage diagnose, or a pair with one of them.",
            field="pair",
        )
    averaged = any(one.follows == "average" for one in teachers)
    if averaged and any(s.kind == "distill" and s.tuning == "lora" for s in recipe.stages):
        yield ErrorInfo(
            code="teachers.average_of_adapters",
            message="The recipe trains adapters, which have no average among the teacher's weights.",
            remedy="Choose a recipe with full tuning, or a pair whose teacher follows otherwise.",
            field="recipe",
        )


def _asked_sets(
    recipe: RecipeDocument, train: PromptSet, held_out: PromptSet | None
) -> Iterator[tuple[str, PromptSet]]:
    """The prompts that some teacher is asked about."""
    yield "train", train
    if held_out is not None and recipe.evaluation.teacher and not _only_diagnoses(recipe):
        yield "held_out", held_out


def _of_tags(pair: Pair, prompt_set: PromptSet, role: str) -> Iterator[ErrorInfo]:
    """Prompts that no teacher scores, and such as lack the text that one reads."""
    if prompt_set.state != PromptSet.State.READY:
        return
    teachers = list(pair.teachers.all())
    known = sorted({tag for one in teachers for tag in one.tags})
    if all(one.tags for one in teachers):
        left = [tags for tags in tag_sets(prompt_set) if set(tags).isdisjoint(known)]
        if left:
            yield ErrorInfo(
                code="teachers.nobody_scores",
                message=f"Some prompts of {prompt_set} are tagged {', '.join(left[0]) or 'nothing'}, and "
                f"the teachers are for {', '.join(known)}.",
                remedy="Choose a pair with a teacher without tags, or tag the prompts.",
                field=role,
            )
    if any(
        one.teaching.privileged and one.teaching.privileged.source == "prompt" for one in teachers
    ):
        missing = prompt_set.rows - prompts_with(prompt_set, "privileged")
        if missing:
            yield ErrorInfo(
                code="prompt_set.no_privileged",
                message=f"{missing:,} prompts of {prompt_set} have no privileged text, which their "
                "teacher reads.",
                remedy="Choose prompts with a column `privileged`, or a teacher with one rule for all.",
                field=role,
            )


def _of_prompt_set(prompt_set: PromptSet, field: str) -> Iterator[ErrorInfo]:
    if prompt_set.state != PromptSet.State.READY or prompt_set.deleted_at is not None:
        yield ErrorInfo(
            code="launch.prompt_set_not_ready",
            message=f"The prompt set {prompt_set} is not ready to be used.",
            remedy="Wait for its import to end, or choose another one.",
            field=field,
        )


def _of_held_out(recipe: RecipeDocument, held_out: PromptSet | None) -> Iterator[ErrorInfo]:
    unready = list(_of_prompt_set(held_out, "held_out")) if held_out is not None else []
    yield from unready
    verifier = recipe.evaluation.verifier
    if verifier == "none" or unready:
        return
    if held_out is None:
        yield ErrorInfo(
            code="launch.no_held_out",
            message=f"The recipe grades held-out prompts with the verifier "
            f"{verifier}, and no held-out set is chosen.",
            remedy="Choose a held-out set, or a recipe whose verifier is none.",
            field="held_out",
        )
    elif verifier == "unit_tests" and prompts_with(held_out, "tests") == 0:
        yield ErrorInfo(
            code="launch.no_tests",
            message=f"No prompt of {held_out} has tests, and the verifier unit_tests runs a "
            "response's code against them.",
            remedy="Choose a held-out set with a column `tests`, or another verifier.",
            field="held_out",
        )
    elif verifier != "unit_tests" and held_out.stats.get("answers") == 0:
        yield ErrorInfo(
            code="launch.no_answers",
            message=f"No prompt of {held_out} has an answer, and the verifier "
            f"{verifier} grades against it.",
            remedy="Choose a held-out set with answers, or the verifier none.",
            field="held_out",
        )


def _of_rewards(recipe: RecipeDocument, train: PromptSet) -> Iterator[ErrorInfo]:
    """A reinforce stage learns from how its own training prompts are graded, and from nothing else."""
    if not any(stage.kind == "reinforce" for stage in recipe.stages):
        return
    if recipe.evaluation.verifier == "none":
        yield ErrorInfo(
            code="recipe.no_verifier",
            message="The recipe reinforces what a verifier finds right, and its verifier is none.",
            remedy="Choose a recipe with a verifier that fits the prompts' answers.",
            field="recipe",
        )
    else:
        yield from _of_graded(recipe, train)


def _of_graded(recipe: RecipeDocument, train: PromptSet) -> Iterator[ErrorInfo]:
    """Training prompts that a stage has graded, as a diagnosis does with those that it probes."""
    verifier = recipe.evaluation.verifier
    tests = verifier == "unit_tests"
    lacks = prompts_with(train, "tests") == 0 if tests else train.stats.get("answers") == 0
    if verifier != "none" and train.state == PromptSet.State.READY and lacks:
        what = "tests" if tests else "an answer"
        yield ErrorInfo(
            code="launch.no_tests" if tests else "launch.no_answers",
            message=f"No prompt of {train} has {what}, which the verifier {verifier} grades by.",
            remedy="Choose other prompts, or the verifier none.",
            field="train",
        )


def _of_asked(recipe: RecipeDocument, asked: AskedParts) -> Iterator[ErrorInfo]:
    for role, prompt_set in asked.sets():
        yield from _of_prompt_set(prompt_set, role)
    if asked.writer is not None:
        yield from _of_model(asked.writer, needs.WRITER)
    yield from needs.faults(recipe, dict(asked.given()))


def _of_template(pair: Pair, recipe: RecipeDocument, train: PromptSet) -> Iterator[ErrorInfo]:
    """Whether the teacher's rendering is another one, told by the first prompt; the job asks of all."""
    chosen = [
        index
        for index, stage in enumerate(recipe.stages)
        if stage.kind == "select_prompts" and stage.strategy == "teacher_template"
    ]
    sides = examples(pair, train) if chosen and train.state == PromptSet.State.READY else []
    texts = {side.preview.text for side in sides}
    if len(sides) > 1 and len(texts) == 1 and not any(side.preview.error for side in sides):
        yield ErrorInfo(
            code="recipe.same_rendering",
            message="Both sides render the first prompt alike, so the strategy teacher_template "
            "changes nothing.",
            remedy="Choose another strategy, or a pair whose teacher has its own rendering.",
            field=f"recipe.stages.{chosen[0]}.strategy",
        )


def _of_stages(pair: Pair, recipe: RecipeDocument) -> Iterator[ErrorInfo]:
    card = pair.student.card
    if card is None:
        return
    student = ModelCard.model_validate(card)
    report = pair.token_map_report
    vocabulary = report["shared_vocabulary"] if report else student.vocabulary
    for index, stage in enumerate(recipe.stages):
        if stage.kind == "evaluate":
            continue
        if _compared(stage) > vocabulary:
            yield ErrorInfo(
                code="recipe.k_above_vocabulary",
                message=f"k is {_compared(stage)} and the pair shares {vocabulary} tokens.",
                remedy=f"Choose a k of at most {vocabulary}; 16 is usual.",
                field=f"recipe.stages.{index}.k",
            )
        if student.context_length and stage.max_response_tokens >= student.context_length:
            yield ErrorInfo(
                code="recipe.response_above_context",
                message=f"Responses of {stage.max_response_tokens} tokens do not fit the "
                f"student's context of {student.context_length} together with a prompt.",
                remedy="Lower max_response_tokens.",
                field=f"recipe.stages.{index}.max_response_tokens",
            )


def _compared(stage: Stage) -> int:
    """How many tokens of each side a stage compares; 0 where it does not choose any."""
    if stage.kind == "diagnose" or (stage.kind == "distill" and stage.form == "top_k"):
        return stage.k
    return 0


def _of_experiments(pair: Pair, recipe: RecipeDocument) -> Iterator[ErrorInfo]:
    """What is offered in the laboratory only; the job would refuse it elsewhere too."""
    if pair.lab_version:
        return
    for index, stage in enumerate(recipe.stages):
        for name in experimental_uses(stage):
            yield ErrorInfo(
                code="recipe.experimental",
                message=f"{name} is {getattr(stage, name)}, which is an experiment.",
                remedy="Choose a laboratory pair, or leave it at its default.",
                field=f"recipe.stages.{index}.{name}",
            )


def _of_disk(
    pair: Pair, recipe: RecipeDocument, resources: Mapping[str, Any] | None
) -> Iterator[ErrorInfo]:
    """Checkpoints, traces and output lie in the state folder, beside the database."""
    needs = estimates.of(pair, recipe, resources=resources)
    needed = (needs.disk_bytes if needs else 0) + SPARE_DISK_BYTES
    free = shutil.disk_usage(settings.STATE_DIR).free
    if free < needed:
        yield ErrorInfo(
            code="launch.disk_full",
            message=f"The run needs about {needed / 1e9:.1f} GB of disk and "
            f"{free / 1e9:.1f} GB are free in {settings.STATE_DIR}.",
            remedy="Free space there, or lower keep_checkpoints or trace_rollouts.",
        )
