"""Which sides of a run are behind servers: as its job is told, and what its recipe cannot do with that.

It knows no process: the job starts its own servers, and an endpoint is somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.soundness import served_refusal
from webapp.models import ModelEndpoint, Project
from webapp.services.resources import parsed

NO_ENDPOINT = "endpoint.unknown"


def frozen(project: Project, asked: Mapping[str, Any]) -> dict[str, Any]:
    """By role what the job is told of its server; a role that the job loads itself is left out."""
    return {
        role: {"endpoint": _endpoint(project, need.endpoint) if need.endpoint else None}
        for role, need in parsed(asked).items()
        if need.served and role != "train"
    }


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
            )


def told_top_k(recipe: RecipeDocument, *, whose: str, code: str, field: str) -> Iterator[ErrorInfo]:
    """What a recipe cannot do with a teacher that tells its top k alone."""
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
        reason = served_refusal(
            form=stage.form,
            support=stage.support,
            temperature=stage.temperature,
            extrapolation=stage.extrapolation,
            token_selection=stage.token_selection,
            high_entropy_forward_weight=stage.high_entropy_forward_weight,
        )
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
