"""Why a job is refused before anything is loaded: what its parts ask of each other and do not give.

It reads the job's document alone, no file and no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from opdcore.contract import needs
from opdcore.contract.distill import DistillStage
from opdcore.contract.document import experimental_uses
from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.job import Job, Resource, ResourceRole
from opdcore.contract.probe import DiagnoseStage
from opdcore.contract.reinforce import ReinforceStage
from opdcore.contract.select_prompts import SelectPromptsStage


def refuse(job: Job) -> None:
    """Raises BadInput for the first thing that cannot work."""
    _refuse_unheeded(job)
    _refuse_following(job)
    _refuse_recorded(job)
    _refuse_telling(job)
    _refuse_experiments(job)
    _refuse_without_verifier(job)


def _refuse_unheeded(job: Job) -> None:
    """What the job may ask for and this version does not do is refused, never passed over."""
    diagnosing = any(isinstance(stage, DiagnoseStage) for stage in job.recipe.stages)
    if diagnosing and len(job.teachers) > 1:
        raise BadInput(
            "diagnose.several_teachers",
            f"{len(job.teachers)} teachers were given; a diagnosis is of a student and one teacher.",
            remedy="Diagnose the student with each of them by itself.",
            field="teachers",
        )
    given = [role for role in needs.PROMPT_ROLES if getattr(job.prompt_sets, role) is not None]
    given += [needs.WRITER] if job.writer is not None else []
    # A judge that is missing is refused where the verifier opens.
    given += [needs.JUDGE] if job.recipe.evaluation.verifier == "judge" else []
    for fault in needs.faults(job.recipe, given):
        field = fault.field if fault.field == needs.WRITER else f"prompt_sets.{fault.field}"
        raise BadInput(fault.code, fault.message, remedy=fault.remedy, field=field)
    served = {"sample"} if job.sampler else set()
    served |= {"teacher"} if all(one.served for one in job.teachers) else set()
    for found in resource_faults(job.resources, served):
        raise BadInput(found.code, found.message, remedy=found.remedy, field=found.field)
    training = job.resources["train"].devices if "train" in job.resources else ()
    own = [
        index
        for index, one in enumerate(job.teachers)
        if one.served and one.served.is_the_jobs_alone and not one.is_replayed
    ]
    if len(training) > 1 and own:
        raise BadInput(
            "teachers.own_server",
            "The job would start the teacher's server, which only its first process could ask; it "
            f"trains on {', '.join(training)}.",
            remedy="Name the endpoint of a server that runs already, a folder that shares one, or train on "
            "one device.",
            field=f"teachers.{own[0]}.served",
        )


def resource_faults(
    resources: Mapping[ResourceRole, Resource], served: Collection[str] = ()
) -> Iterator[ErrorInfo]:
    """Devices by role that this version cannot use; the page of a launch refuses by it too.

    A role that is `served` may have devices of its own, which its server gets.
    """
    here = [one for role, one in resources.items() if role not in served]
    devices = sorted({name for one in here for name in one.devices})
    training = resources["train"].devices if "train" in resources else ()
    if len(devices) > 1 and not set(training).issuperset(devices):
        yield ErrorInfo(
            code="resources.several",
            message=f"{', '.join(devices)} were given, of which train has "
            f"{', '.join(training) or 'none'}; this version runs both models where it trains.",
            remedy="Name all of them for train, or one device for all roles; a role of its own devices "
            "is for a server.",
            field="resources",
        )


def _refuse_following(job: Job) -> None:
    """What a teacher that follows its student cannot be combined with."""
    averaged = [i for i, one in enumerate(job.teachers) if one.follows == "average"]
    private = [i for i, one in enumerate(job.teachers) if one.privileged is not None]
    for index, stage in enumerate(job.recipe.stages):
        if averaged and isinstance(stage, DistillStage) and stage.tuning == "lora":
            raise BadInput(
                "teachers.average_of_adapters",
                f"Stage {index + 1} trains adapters, which have no average among the teacher's weights.",
                remedy="Set tuning to full, or follows to student or frozen.",
                field=f"teachers.{averaged[0]}.follows",
            )
        shown = isinstance(stage, SelectPromptsStage) and stage.strategy == "teacher_template"
        if private and shown:
            raise BadInput(
                "recipe.privileged_template",
                "The strategy teacher_template would show the student what its teacher alone reads.",
                remedy="Choose another strategy, or a teacher without privileged text.",
                field=f"recipe.stages.{index}.strategy",
            )


def _refuse_recorded(job: Job) -> None:
    """Scores of weights that move are true for one step."""
    for index, one in enumerate(job.teachers):
        if one.scores is not None and one.follows != "frozen":
            raise BadInput(
                "teachers.scores_follow",
                f"Its scores are to be kept or replayed, and its weights follow the student ({one.follows}).",
                remedy="Leave out scores, or set follows to frozen.",
                field=f"teachers.{index}.scores",
            )


def _refuse_telling(job: Job) -> None:
    """What a teacher cannot be asked that tells its top k alone: behind a server, or with a record."""
    telling = [index for index, one in enumerate(job.teachers) if one.tells_top_k]
    if not telling:
        return
    kept = job.teachers[telling[0]].served is None
    told = all(job.teachers[index].student_top_k for index in telling)
    for index, stage in enumerate(job.recipe.stages):
        if isinstance(stage, DiagnoseStage):
            raise BadInput(
                "diagnose.kept_scores" if kept else "diagnose.served_teacher",
                f"Stage {index + 1} diagnoses, which compares whole distributions.",
                remedy="Diagnose with the teacher loaded by the job, without keeping its scores.",
                field=f"teachers.{telling[0]}.{'scores' if kept else 'served'}",
            )
        if isinstance(stage, DistillStage):
            field = f"recipe.stages.{index}"
            _refuse_objective(stage, field, kept=kept, student_top_k=told)


def _refuse_objective(stage: DistillStage, field: str, *, kept: bool, student_top_k: bool) -> None:
    reason = stage.told_refusal(student_top_k=student_top_k)
    if reason is not None:
        knob = reason.partition(": ")[0]
        what, _, remedy = reason.replace(": ", " ", 1).partition("; ")
        raise BadInput(
            "recipe.kept_scores" if kept else "recipe.served_teacher",
            f"The teacher {'has a record' if kept else 'is behind a server'}, and {what}.",
            remedy=f"{remedy[:1].upper()}{remedy[1:]}.",
            field=f"{field}.{knob}",
        )


def _refuse_experiments(job: Job) -> None:
    """What is offered in the laboratory only is refused everywhere else."""
    for index, stage in enumerate(job.recipe.stages):
        used = experimental_uses(stage)
        if used and job.lab_version is None:
            raise BadInput(
                "recipe.experimental",
                f"{used[0]} is {getattr(stage, used[0])}, which is an experiment.",
                remedy="Run it on the laboratory's pair, or leave it at its default.",
                field=f"recipe.stages.{index}.{used[0]}",
            )


def _refuse_without_verifier(job: Job) -> None:
    """What learns from a verifier's verdicts alone has nothing to learn from without one."""
    stages = enumerate(job.recipe.stages)
    learning = [index for index, stage in stages if isinstance(stage, ReinforceStage)]
    if learning and job.recipe.evaluation.verifier == "none":
        raise BadInput(
            "recipe.no_verifier",
            f"Stage {learning[0] + 1} reinforces what a verifier finds right, and the recipe's "
            "verifier is none.",
            remedy="Choose a verifier that fits the prompts' answers, such as numeric or math.",
            field="recipe.evaluation.verifier",
        )
