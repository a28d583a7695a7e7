"""Pairs: made only where both sides' token ids mean the same; previewed as each side reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.prompt import Prompt
from opdcore.contract.rendering import Rendering
from opdcore.contract.teacher import Privileged, Teaching
from opdcore.privileged import read_with
from opdcore.rendering import Renderer
from opdcore.token_maps import TokenMapReport, compare
from webapp.models import Pair, PairTeacher, Project, RegisteredModel, User
from webapp.permissions import require
from webapp.services import audit
from webapp.services.checkpoints import folder_of

# Enough to see the template around a prompt; a page stays light.
PREVIEW_TOKENS = 600


@dataclass(frozen=True, slots=True)
class TeacherChoice:
    """A teacher as a form gives it."""

    model: RegisteredModel
    rendering: Rendering = field(default_factory=Rendering)
    teaching: Teaching = field(default_factory=Teaching)


@dataclass(frozen=True, slots=True)
class Laboratory:
    """Marks a pair as the built-in laboratory's."""

    version: str


@dataclass(frozen=True, slots=True)
class PreviewToken:
    """A token id with its text."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Preview:
    """A prompt as one side reads it; `error` says why it cannot be rendered."""

    text: str = ""
    tokens: tuple[PreviewToken, ...] = ()
    count: int = 0
    stop_ids: tuple[int, ...] = ()
    error: ErrorInfo | None = None

    @property
    def left_out(self) -> int:
        return self.count - len(self.tokens)


def create(
    name: str,
    *,
    project: Project,
    actor: User,
    student: RegisteredModel,
    teachers: Sequence[TeacherChoice],
    student_rendering: Rendering | None = None,
    notes: str = "",
    laboratory: Laboratory | None = None,
) -> Pair:
    """Makes a pair; raises BadInput where token maps differ, and saves nothing then."""
    require(actor, "edit", project)
    _soundly_chosen(name, project, student=student, teachers=teachers)
    _refuse_following_others(student, teachers)
    # Two large tokenizers take seconds to read: nobody else's write waits for that.
    report = check(student, teachers)
    _refuse_different(report)
    with transaction.atomic():
        pair = _row(
            name.strip()[:120],
            project=project,
            created_by=actor,
            student=student,
            student_rendering=(student_rendering or Rendering()).model_dump(mode="json"),
            token_map_report=report,
            notes=notes,
            is_laboratory=laboratory is not None,
            lab_version=laboratory.version if laboratory else "",
        )
        _add_teachers(pair, teachers)
        detail = {"name": pair.name, "student": student.name, "teachers": len(teachers)}
        audit.record(actor, "create", project=project, about=pair, detail=detail)
    return pair


def _add_teachers(pair: Pair, teachers: Sequence[TeacherChoice]) -> None:
    PairTeacher.objects.bulk_create(
        PairTeacher(
            pair=pair,
            model=choice.model,
            **choice.teaching.model_dump(mode="json"),
            rendering=choice.rendering.model_dump(mode="json"),
            position=position,
        )
        for position, choice in enumerate(teachers)
    )


@transaction.atomic
def delete(pair: Pair, *, actor: User) -> None:
    """Deletes a pair that no run has used."""
    require(actor, "edit", pair.project)
    audit.record(actor, "delete", project=pair.project, about=pair, detail={"name": pair.name})
    try:
        pair.delete()
    except ProtectedError as error:
        raise BadInput(
            "pair.in_use",
            f"{pair.name} has runs.",
            remedy="A pair with runs stays, so that they can be read; make another pair.",
            field="pair",
        ) from error


def check(student: RegisteredModel, teachers: Sequence[TeacherChoice]) -> dict[str, Any] | None:
    """The token maps of every teacher against the student's; None where a side is not at hand."""
    ours = folder_of(student)
    theirs = [(choice.model.name, folder_of(choice.model)) for choice in teachers]
    reports = {
        name: compare(ours, folder)
        for name, folder in theirs
        if ours is not None and folder is not None
    }
    return _merged(reports) if reports else None


def preview(
    model: RegisteredModel,
    rendering: Rendering,
    prompt: Prompt,
    privileged: Privileged | None = None,
) -> Preview | None:
    """The prompt as this model reads it, with what it alone reads; None where its files are not at hand."""
    try:
        folder = folder_of(model)
        if folder is None:
            return None
        renderer = Renderer.from_folder(folder, rendering)
        rendered = renderer.render(prompt if privileged is None else read_with(privileged, prompt))
    except BadInput as error:
        return Preview(error=error.info)
    shown = rendered.ids[:PREVIEW_TOKENS]
    return Preview(
        text=rendered.text,
        tokens=tuple(PreviewToken(one, renderer.token_text(one)) for one in shown),
        count=len(rendered.ids),
        stop_ids=renderer.stop_ids,
    )


def _merged(reports: dict[str, TokenMapReport]) -> dict[str, Any]:
    """All teachers' reports, with the worst verdict and the narrowest shared vocabulary."""
    order = ["same", "warning", "different"]
    worst = max(reports.values(), key=lambda report: order.index(report.verdict))
    return {
        "verdict": worst.verdict,
        "summary": worst.summary,
        "shared_vocabulary": min(report.shared_vocabulary for report in reports.values()),
        "teachers": {name: report.model_dump(mode="json") for name, report in reports.items()},
    }


def _refuse_different(report: dict[str, Any] | None) -> None:
    for one in (report or {"teachers": {}})["teachers"].values():
        TokenMapReport.model_validate(one).refuse_if_different()


def _soundly_chosen(
    name: str,
    project: Project,
    *,
    student: RegisteredModel,
    teachers: Sequence[TeacherChoice],
) -> None:
    if not name.strip():
        raise BadInput("pair.no_name", "The name is empty.", remedy="Give a name.", field="name")
    if not teachers:
        raise BadInput(
            "pair.no_teacher", "No teacher is chosen.", remedy="Choose one.", field="teachers"
        )
    for model in (student, *(choice.model for choice in teachers)):
        if model.project_id != project.pk:
            raise BadInput(
                "pair.other_project",
                f"{model.name} belongs to another project.",
                remedy=f"Choose a model of {project.name}.",
                field="student" if model is student else "teachers",
            )


def _refuse_following_others(student: RegisteredModel, teachers: Sequence[TeacherChoice]) -> None:
    for choice in teachers:
        if choice.teaching.follows != "frozen" and choice.model != student:
            raise BadInput(
                "teachers.follows_other",
                f"{choice.model.name} is to follow the student's weights and is another model.",
                remedy="Choose the student itself as this teacher, or let it stay frozen.",
                field="teachers",
            )


def _row(name: str, **fields: object) -> Pair:
    try:
        with transaction.atomic():
            return Pair.objects.create(name=name, **fields)
    except IntegrityError as error:
        raise BadInput(
            "pair.name_taken",
            f"There is already a pair named {name!r}.",
            remedy="Choose another name.",
            field="name",
        ) from error
