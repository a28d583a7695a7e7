"""What a page may see: the chosen project, and objects through `visible_to` alone."""

from __future__ import annotations

from typing import cast

from django.http import Http404, HttpRequest

from webapp.context import current
from webapp.models import Project, User
from webapp.models.ownership import OwnedQuerySet, Row


def actor(request: HttpRequest) -> User:
    """Who asks; every page but the log-in requires somebody."""
    return cast("User", request.user)


def chosen_project(request: HttpRequest) -> Project:
    """The project chosen in this session; Http404 where the user is in none."""
    project = current(request, list(Project.objects.visible_to(request.user)))
    if project is None:
        raise Http404("You are in no project yet; ask an admin to add you to one.")
    return project


def visible(rows: OwnedQuerySet[Row], request: HttpRequest, public_id: str) -> Row:
    """The object with this public id, or Http404 whether it is hidden or absent."""
    found = rows.visible_to(request.user).filter(public_id=public_id).first()
    if found is None:
        raise Http404(f"There is no {public_id} that you may see.")
    return found
