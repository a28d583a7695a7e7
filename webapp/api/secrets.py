"""A project's secrets: listed without their values, set, deleted."""

from __future__ import annotations

from datetime import datetime

from django.http import HttpRequest
from ninja import Query, Router, Schema, Status
from pydantic import Field

from opdcore.contract.document import Document
from webapp.api import scope
from webapp.api.references import REFUSALS, WRITE_REFUSALS
from webapp.models import ProjectSecret
from webapp.services import project_secrets

router = Router(tags=["Secrets"])


class SecretReply(Schema):
    """A secret as it may be shown."""

    public_id: str
    name: str
    last_four: str = Field(description="Empty where the value is short.")
    set_at: datetime
    set_by: str | None

    @staticmethod
    def resolve_set_by(secret: ProjectSecret) -> str | None:
        return secret.set_by.get_username() if secret.set_by else None


class SecretPage(Schema):
    items: list[SecretReply]
    next: str | None


class SecretBody(Document):
    """A secret to set or to replace."""

    name: str = Field(max_length=80, description="Environment variable, such as HF_TOKEN.")
    value: str = Field(max_length=4096, description="Never shown again.")
    project: str | None = Field(None, description="Needed where you are in several.")


@router.get("", response={200: SecretPage, **REFUSALS}, summary="List secrets")
def list_secrets(request: HttpRequest, query: Query[scope.ListQuery]) -> scope.Page[ProjectSecret]:
    """Names, last four characters, and who set them; never a value."""
    return scope.page(ProjectSecret.objects.select_related("set_by"), request, query)


@router.put("", response={200: SecretReply, **WRITE_REFUSALS}, summary="Set a secret")
def set_secret(request: HttpRequest, body: SecretBody) -> ProjectSecret:
    """Replaces the one of that name; a maintainer of the project may."""
    owner, actor = scope.project(request, body.project), scope.actor(request)
    return project_secrets.put(owner, body.name, body.value, actor=actor)


@router.delete("/{public_id}", response={204: None, **WRITE_REFUSALS}, summary="Forget a secret")
def delete_secret(request: HttpRequest, public_id: str) -> Status[None]:
    """Jobs started from now on lack it."""
    secret = scope.visible(ProjectSecret.objects.select_related("project"), request, public_id)
    project_secrets.delete(secret, actor=scope.actor(request))
    return Status(204, None)
