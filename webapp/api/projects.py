"""Projects of the caller, and the role there."""

from __future__ import annotations

from django.http import HttpRequest
from ninja import Router, Schema
from pydantic import Field

from webapp.api.references import REFUSALS
from webapp.api.scope import actor
from webapp.models import Project
from webapp.permissions import role_of

router = Router(tags=["Projects"])


class ProjectReply(Schema):
    public_id: str
    name: str
    role: str | None = Field(description="viewer, member, maintainer or admin.")


@router.get("", response={200: list[ProjectReply], **REFUSALS}, summary="Your projects")
def list_projects(request: HttpRequest) -> list[dict[str, object]]:
    """Every project that you are in, by name."""
    user = actor(request)
    return [
        {"public_id": one.public_id, "name": one.name, "role": role_of(user, one)}
        for one in Project.objects.visible_to(user)
    ]
