"""Pairs: listed, read, made where the token maps of both sides agree."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from ninja import Query, Router, Schema, Status
from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.rendering import Rendering
from opdcore.contract.teacher import Teaching
from webapp.api import scope
from webapp.api.references import REFUSALS, WRITE_REFUSALS, Ref
from webapp.models import Pair, PairTeacher, RegisteredModel
from webapp.services import pairs
from webapp.services.pairs import TeacherChoice

router = Router(tags=["Pairs"])


class TeacherReply(Schema):
    model: Ref
    weight: float
    tags: list[str]
    privileged: dict[str, Any] | None = Field(description="Text that it alone reads.")
    follows: str
    average_decay: float
    rendering: dict[str, Any]


class PairRow(Schema):
    """A student with its teachers."""

    public_id: str
    name: str
    student: Ref
    teachers: list[TeacherReply]
    is_laboratory: bool
    created_at: datetime

    @staticmethod
    def resolve_teachers(pair: Pair) -> list[PairTeacher]:
        return list(pair.teachers.all())


class PairReply(PairRow):
    """A pair with how its sides render, and whether their token ids agree."""

    student_rendering: dict[str, Any]
    token_map_report: dict[str, Any] | None = Field(description="Null until both are at hand.")
    lab_version: str
    notes: str


class PairPage(Schema):
    items: list[PairRow]
    next: str | None


class TeacherBody(Teaching):
    model: str = Field(description="public_id of a model.")
    rendering: Rendering = Field(default_factory=Rendering)


class PairBody(Document):
    """A pair to make; all models of one project, to which the pair then belongs."""

    name: str = Field(min_length=1, max_length=120)
    student: str = Field(description="public_id of a model.")
    student_rendering: Rendering = Field(default_factory=Rendering)
    teachers: tuple[TeacherBody, ...] = Field(min_length=1, max_length=16)
    notes: str = ""


@router.get("", response={200: PairPage, **REFUSALS}, summary="List pairs")
def list_pairs(request: HttpRequest, query: Query[scope.ListQuery]) -> scope.Page[Pair]:
    """At most 100 a page, newest first."""
    return scope.page(Pair.objects.with_models(), request, query)


@router.post("", response={201: PairReply, **WRITE_REFUSALS}, summary="Make a pair")
def create_pair(request: HttpRequest, body: PairBody) -> Status[Pair]:
    """Refused, naming the first token that differs, where both sides' ids mean different tokens."""
    student = scope.chosen(RegisteredModel.objects.all(), request, body.student, field="student")
    pair = pairs.create(
        body.name,
        project=student.project,
        actor=scope.actor(request),
        student=student,
        student_rendering=body.student_rendering,
        teachers=[_teacher(request, one, index) for index, one in enumerate(body.teachers)],
        notes=body.notes,
    )
    return Status(201, pair)


@router.get("/{public_id}", response={200: PairReply, **REFUSALS}, summary="Read a pair")
def read_pair(request: HttpRequest, public_id: str) -> Pair:
    """The pair with both sides' rendering."""
    return scope.visible(Pair.objects.with_models(), request, public_id)


def _teacher(request: HttpRequest, body: TeacherBody, index: int) -> TeacherChoice:
    field = f"teachers.{index}.model"
    model = scope.chosen(RegisteredModel.objects.all(), request, body.model, field=field)
    said = body.model_dump(include=set(Teaching.model_fields))
    return TeacherChoice(model, rendering=body.rendering, teaching=Teaching.model_validate(said))
