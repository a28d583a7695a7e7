"""What a call may see and touch: objects through `visible_to` alone, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, cast

from django.http import Http404, HttpRequest
from ninja import Schema
from pydantic import Field

from opdcore.contract.errors import BadInput
from webapp.models import Project, User
from webapp.models.ownership import OwnedQuerySet, Row

ROWS = 100


def actor(request: HttpRequest) -> User:
    """Who calls; every operation requires somebody."""
    return cast("User", request.auth)  # type: ignore[attr-defined]


def visible(rows: OwnedQuerySet[Row], request: HttpRequest, public_id: str) -> Row:
    """The object of the address, or Http404 whether it is hidden or absent."""
    found = rows.visible_to(actor(request)).filter(public_id=public_id).first()
    if found is None:
        raise Http404(f"There is no {public_id} that you may see.")
    return found


def chosen(rows: OwnedQuerySet[Row], request: HttpRequest, public_id: str, *, field: str) -> Row:
    """The object that a field of the body names; BadInput where there is none to see."""
    found = rows.visible_to(actor(request)).filter(public_id=public_id).first()
    if found is None:
        raise BadInput(
            "api.no_such",
            f"There is no {public_id!r} that you may see.",
            remedy="Give the public_id of one that its list shows.",
            field=field,
        )
    return found


def project(request: HttpRequest, public_id: str | None) -> Project:
    """The project that is named, or the only one of the caller."""
    mine = Project.objects.visible_to(actor(request))
    found = list(mine.filter(public_id=public_id) if public_id else mine[:2])
    if len(found) == 1:
        return found[0]
    raise BadInput(
        "api.project",
        f"There is no project {public_id!r} that you may see."
        if public_id
        else f"You are in {'several projects' if found else 'no project'}.",
        remedy="Give the public_id of one that /api/projects lists.",
        field="project",
    )


class ListQuery(Schema):
    """Which part of a list."""

    project: str | None = Field(None, description="public_id of a project; absent: all of yours.")
    after: str | None = Field(None, description="`next` of the page before.")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows, newest first; `next` is the `after` of the following page."""

    items: list[Row]
    next: str | None


def page(rows: OwnedQuerySet[Row], request: HttpRequest, query: ListQuery) -> Page[Row]:
    """The caller's rows after that one, found by key, so that no page is slower than the first."""
    mine = rows.visible_to(actor(request)).order_by("-pk")
    if query.project:
        mine = mine.filter(project=project(request, query.project))
    if query.after:
        mine = mine.filter(pk__lt=chosen(rows, request, query.after, field="after").pk)
    found = list(mine[: ROWS + 1])
    more = len(found) > ROWS
    return Page(found[:ROWS], next=str(found[ROWS - 1].public_id) if more else None)  # type: ignore[attr-defined]
