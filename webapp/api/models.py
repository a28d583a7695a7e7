"""Registered models: listed, read, registered from a folder or the hub."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from ninja import Query, Router, Schema, Status
from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.errors import ErrorInfo
from opdcore.contract.participant import LocalModel, ModelSource
from webapp.api import scope
from webapp.api.references import REFUSALS, WRITE_REFUSALS
from webapp.models import RegisteredModel
from webapp.services import checkpoints

router = Router(tags=["Models"])


class ModelRow(Schema):
    """A registered model."""

    public_id: str
    name: str
    state: str = Field(description="ready, registered (fetched at launch) or error.")
    source_kind: str = Field(description="local, hub or run.")
    path: str
    repo: str
    revision: str
    created_at: datetime
    error: ErrorInfo | None


class ModelReply(ModelRow):
    """A registered model with what its folder says."""

    card: dict[str, Any] | None = Field(description="Read without loading weights; null for hub.")


class ModelPage(Schema):
    items: list[ModelRow]
    next: str | None


class ModelBody(Document):
    """A model to register."""

    source: ModelSource
    name: str = Field("", max_length=120, description="Empty: that of the folder or repository.")
    project: str | None = Field(None, description="Needed where you are in several.")


@router.get("", response={200: ModelPage, **REFUSALS}, summary="List models")
def list_models(request: HttpRequest, query: Query[scope.ListQuery]) -> scope.Page[RegisteredModel]:
    """At most 100 a page, newest first."""
    return scope.page(RegisteredModel.objects.all(), request, query)


@router.post("", response={201: ModelReply, **WRITE_REFUSALS}, summary="Register a model")
def register_model(request: HttpRequest, body: ModelBody) -> Status[RegisteredModel]:
    """A folder is inspected first, and nothing is saved where it cannot be used."""
    owner, actor = scope.project(request, body.project), scope.actor(request)
    source = body.source
    if isinstance(source, LocalModel):
        model = checkpoints.register_local(body.name, source.path, project=owner, actor=actor)
    else:
        model = checkpoints.register_hub(
            body.name, source.repo, revision=source.revision, project=owner, actor=actor
        )
    return Status(201, model)


@router.get("/{public_id}", response={200: ModelReply, **REFUSALS}, summary="Read a model")
def read_model(request: HttpRequest, public_id: str) -> RegisteredModel:
    """The model with its card."""
    return scope.visible(RegisteredModel.objects.all(), request, public_id)
