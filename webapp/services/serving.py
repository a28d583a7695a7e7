"""Which sides of a run are behind servers: as its job is told, and what its recipe cannot do with that.

It knows no process: the job starts its own servers, and an endpoint is somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from django.db.models import QuerySet

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.inspection import ModelCard
from opdcore.serving.needs import teacher_size
from webapp.models import Device, ModelEndpoint, Pair, Project, Run, User
from webapp.services.resources import DeviceNeed, parsed

NO_ENDPOINT = "endpoint.unknown"
OF_THE_RUN = "vLLM, started for it"


def frozen(project: Project, asked: Mapping[str, Any], recipe: RecipeDocument) -> dict[str, Any]:
    """By role what the job is told of its server; a role that the job loads itself is left out."""
    of_teacher = {"teacher": {"student_top_k": needs_student_top_k(recipe)}}
    return {
        role: {
            "endpoint": _endpoint(project, need.endpoint) if need.endpoint else None,
            "memory_share": need.memory_share,
            **of_teacher.get(role, {}),
        }
        for role, need in parsed(asked).items()
        if need.served and role != "train"
    }


def needs_student_top_k(recipe: RecipeDocument) -> bool:
    """Whether a server must tell more than its own top k for the recipe."""
    stages = [stage for stage in recipe.stages if stage.kind == "distill"]
    refused = [stage for stage in stages if stage.told_refusal(student_top_k=False)]
    return bool(refused) and not any(one.told_refusal(student_top_k=True) for one in refused)


def _tells_student_top_k(project: Project, need: DeviceNeed) -> bool:
    """Whether the server may be able to; a registered one that was not asked is given the chance."""
    if need.endpoint:
        row = _rows(project).filter(public_id=need.endpoint).first()
        return row is None or (row.probe or {}).get("student_top_k") is not False
    return need.kind != "cpu" and Device.objects.filter(kind="cuda").exists()


def teacher_server(pair: Pair, asked: Mapping[str, Any], recipe: RecipeDocument) -> str:
    """What decides the server that the job starts for its teacher; runs of equal ones share it.

    Empty where it starts none, or one that nobody can share.
    """
    need = parsed(asked).get("teacher")
    teachers = list(pair.teachers.all())
    if need is None or not need.served or need.endpoint or len(teachers) != 1:
        return ""
    card = teachers[0].model.card
    if card is None:
        return ""
    size = teacher_size(recipe, ModelCard.model_validate(card))
    told = needs_student_top_k(recipe)
    parts = (teachers[0].model.public_id, need.kind, need.count, need.memory_share, size, told)
    return sha256(repr(parts).encode()).hexdigest()[:32]


def places(run: Run) -> list[tuple[str, str]]:
    """Where the run's served sides are, in words."""
    frozen = run.snapshot.get("serving") or {}
    labels = {"teacher": "Teacher's server", "sample": "Sampler's server"}
    return [
        (label, frozen[role]["endpoint"]["base_url"] if frozen[role]["endpoint"] else OF_THE_RUN)
        for role, label in labels.items()
        if frozen.get(role)
    ]


def sharing(run: Run, reader: User) -> QuerySet[Run]:
    """Other runs that use the teacher's server at this moment."""
    running = Run.objects.visible_to(reader).filter(status=Run.Status.RUNNING, host=run.host)
    if not run.teacher_server or run.status != Run.Status.RUNNING:
        return running.none()
    return running.filter(teacher_server=run.teacher_server).exclude(pk=run.pk)


def roles(asked: Mapping[str, Any] | None) -> list[str]:
    """The roles that are behind servers."""
    return [role for role, need in parsed(asked or {}).items() if need.served]


def problems(
    project: Project, recipe: RecipeDocument, asked: Mapping[str, Any] | None
) -> Iterator[ErrorInfo]:
    """What the job would refuse, at the field that is to blame."""
    for role, need in parsed(asked or {}).items():
        if need.endpoint and not _rows(project).filter(public_id=need.endpoint).exists():
            yield ErrorInfo(
                code=NO_ENDPOINT,
                message=f"There is no endpoint {need.endpoint!r} in {project.name}.",
                remedy="Choose a registered one, or a server of the run's own.",
                field="resources",
            )
        if need.served and role == "teacher":
            yield from told_top_k(
                recipe,
                whose="has the teacher behind a server",
                code="served_teacher",
                field="teacher_served",
                student_top_k=_tells_student_top_k(project, need),
            )


def told_top_k(
    recipe: RecipeDocument, *, whose: str, code: str, field: str, student_top_k: bool = False
) -> Iterator[ErrorInfo]:
    """What a recipe cannot do with a teacher that tells its top k, and perhaps the student's, alone."""
    for index, stage in enumerate(recipe.stages):
        if stage.kind == "diagnose":
            yield ErrorInfo(
                code=f"diagnose.{code}",
                message=f"Stage {index + 1} diagnoses, which compares whole distributions.",
                remedy="Have the teacher loaded by the job without keeping its scores, or choose a recipe "
                "without diagnose.",
                field=field,
            )
        if stage.kind != "distill":
            continue
        reason = stage.told_refusal(student_top_k=student_top_k)
        if reason is not None:
            what, _, remedy = reason.replace(": ", " ", 1).partition("; ")
            yield ErrorInfo(
                code=f"recipe.{code}",
                message=f"Stage {index + 1} {whose}, and {what}.",
                remedy=f"{remedy[:1].upper()}{remedy[1:]}.",
                field=field,
            )


def _endpoint(project: Project, public_id: str) -> dict[str, Any] | None:
    row = _rows(project).filter(public_id=public_id).first()
    if row is None:
        return None
    key = row.key_variable if row.sealed_key else None
    return {"base_url": row.base_url, "model": row.model, "key_variable": key}


def _rows(project: Project) -> Any:  # noqa: ANN401 (a query set)
    return ModelEndpoint.objects.filter(project=project)
