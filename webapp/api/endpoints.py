"""Endpoints: model servers listed, registered by an admin, asked what they serve, removed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from ninja import Query, Router, Schema, Status
from pydantic import Field

from opdcore.contract.document import Document
from webapp.api import scope
from webapp.api.references import REFUSALS, WRITE_REFUSALS
from webapp.models import ModelEndpoint
from webapp.services import endpoints

router = Router(tags=["Endpoints"])


class EndpointReply(Schema):
    """A registered server; its key is never shown."""

    public_id: str
    name: str
    base_url: str
    model: str
    last_four: str = Field(description="Of its key; empty where there is none or it is short.")
    probe: dict[str, Any] | None = Field(
        description="models, version, seconds, serves_model, and fault where it could not be asked."
    )
    probed_at: datetime | None


class EndpointPage(Schema):
    items: list[EndpointReply]
    next: str | None


class EndpointBody(Document):
    """A server to register."""

    name: str = Field(max_length=80)
    base_url: str = Field(max_length=500, description="Such as http://teacher:8000.")
    model: str = Field(max_length=200, description="Its name there.")
    key: str = Field("", max_length=4096, description="Never shown again.")
    project: str | None = Field(None, description="Needed where you are in several.")


@router.get("", response={200: EndpointPage, **REFUSALS}, summary="List endpoints")
def list_endpoints(
    request: HttpRequest, query: Query[scope.ListQuery]
) -> scope.Page[ModelEndpoint]:
    """At most 100 a page, newest first."""
    return scope.page(ModelEndpoint.objects.all(), request, query)


@router.post("", response={201: EndpointReply, **WRITE_REFUSALS}, summary="Register an endpoint")
def register_endpoint(request: HttpRequest, body: EndpointBody) -> Status[ModelEndpoint]:
    """Only an admin of the project may; nothing is asked of the server yet."""
    owner, actor = scope.project(request, body.project), scope.actor(request)
    parts = body.model_dump(exclude={"project", "name"})
    return Status(201, endpoints.register(owner, body.name, **parts, actor=actor))


@router.post(
    "/{public_id}/probe", response={200: EndpointReply, **WRITE_REFUSALS}, summary="Ask it"
)
def probe_endpoint(request: HttpRequest, public_id: str) -> ModelEndpoint:
    """Asks the server for its models and version, for five seconds at most."""
    return endpoints.probe(_endpoint(request, public_id), actor=scope.actor(request))


@router.delete("/{public_id}", response={204: None, **WRITE_REFUSALS}, summary="Remove an endpoint")
def remove_endpoint(request: HttpRequest, public_id: str) -> Status[None]:
    """Forgets it with its key."""
    endpoints.remove(_endpoint(request, public_id), actor=scope.actor(request))
    return Status(204, None)


def _endpoint(request: HttpRequest, public_id: str) -> ModelEndpoint:
    return scope.visible(ModelEndpoint.objects.select_related("project"), request, public_id)
