"""Prompt sets: listed, read, made from prompts or from an uploaded file."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpRequest, HttpResponse
from ninja import File, Form, Query, Router, Schema, Status
from ninja.files import UploadedFile
from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.prompt import Prompt
from webapp.api import errors, scope
from webapp.api.references import REFUSALS, WRITE_REFUSALS
from webapp.models import PromptSet
from webapp.services import prompt_sets

router = Router(tags=["Prompt sets"])

MOST_PROMPTS = 200


class PromptSetRow(Schema):
    """One version of a prompt set; versions never change."""

    public_id: str
    name: str
    version: int
    state: str = Field(description="importing, ready or failed.")
    progress: float = Field(description="Share of the source that was read, in [0, 1].")
    rows: int
    sha256: str = Field(description="Of the canonical JSON lines; empty until it is ready.")
    source_name: str
    created_at: datetime


class PromptSetReply(PromptSetRow):
    """A prompt set with its figures."""

    stats: dict[str, Any]
    error_count: int
    errors: list[dict[str, Any]] = Field(description="The first bad rows: line, column, value.")


class PromptSetPage(Schema):
    items: list[PromptSetRow]
    next: str | None


class PromptSetBody(Document):
    """Prompts to keep under a name."""

    name: str = Field(min_length=1, max_length=120)
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    project: str | None = Field(None, description="Needed where you are in several.")


class UploadForm(Schema):
    name: str = Field("", max_length=120, description="Empty: the file's name.")
    project: str | None = Field(None, description="Needed where you are in several.")


class PromptsQuery(Schema):
    start: int = Field(0, ge=0, description="First row, from 0.")
    count: int = Field(50, ge=1, le=MOST_PROMPTS)


class PromptsReply(Schema):
    items: list[Prompt]
    start: int
    rows: int


CREATED = {201: PromptSetReply, 202: PromptSetReply, **WRITE_REFUSALS}


@router.get("", response={200: PromptSetPage, **REFUSALS}, summary="List prompt sets")
def list_prompt_sets(request: HttpRequest, query: Query[scope.ListQuery]) -> scope.Page[PromptSet]:
    """At most 100 a page, newest first."""
    return scope.page(PromptSet.objects.present(), request, query)


@router.post("", response=CREATED, summary="Make a prompt set")
def create_prompt_set(
    request: HttpRequest, body: PromptSetBody
) -> Status[PromptSet] | HttpResponse:
    """From prompts in the body; the next version of its name where there is one."""
    lines = "\n".join(one.model_dump_json(exclude_none=True) for one in body.prompts)
    file = SimpleUploadedFile("prompts.jsonl", lines.encode())
    row = prompt_sets.upload(
        file,
        name=body.name,
        project=scope.project(request, body.project),
        actor=scope.actor(request),
    )
    return _imported(row)


@router.post("/upload", response=CREATED, summary="Upload a prompt set")
def upload_prompt_set(
    request: HttpRequest, file: File[UploadedFile], form: Form[UploadForm]
) -> Status[PromptSet] | HttpResponse:
    """JSON lines, CSV or Parquet. 202: it is large and still being read; ask for it until ready."""
    row = prompt_sets.upload(
        file,
        name=form.name,
        project=scope.project(request, form.project),
        actor=scope.actor(request),
    )
    return _imported(row)


@router.get("/{public_id}", response={200: PromptSetReply, **REFUSALS}, summary="Read a prompt set")
def read_prompt_set(request: HttpRequest, public_id: str) -> PromptSet:
    """The set with its figures, and its errors where the import failed."""
    row = scope.visible(PromptSet.objects.present(), request, public_id)
    return prompt_sets.give_up_if_silent(row)


@router.get("/{public_id}/prompts", response={200: PromptsReply, **REFUSALS}, summary="Its prompts")
def read_prompts(
    request: HttpRequest, public_id: str, query: Query[PromptsQuery]
) -> dict[str, object]:
    """Some rows as they are stored."""
    row = scope.visible(PromptSet.objects.present(), request, public_id)
    if row.state != PromptSet.State.READY:
        raise BadInput(
            "prompt_set.not_ready",
            f"{row} is {row.state}.",
            remedy="Ask again once its state is ready.",
            field="public_id",
        )
    items = prompt_sets.page_of(row, start=query.start, count=query.count)
    return {"items": items, "start": query.start, "rows": row.rows}


def _imported(row: PromptSet) -> Status[PromptSet] | HttpResponse:
    """The new set; where rows were bad, each of them with its line, as for any unsound field."""
    if row.state != PromptSet.State.FAILED:
        return Status(201 if row.state == PromptSet.State.READY else 202, row)
    return errors.answer([_of_row(one) for one in row.errors], status=422)


def _of_row(error: dict[str, Any]) -> ErrorInfo:
    line = f"line {error['line']}" if error["line"] else None
    where = ", ".join(part for part in (line, error["column"]) if part)
    return ErrorInfo(
        code="prompt_set.row",
        message=error["message"],
        remedy=error["remedy"],
        field=where or "file",
    )
