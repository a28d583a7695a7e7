"""What every page knows beside its own context: the projects at hand and the chosen one."""

from __future__ import annotations

from typing import TypedDict

from django.http import HttpRequest

from webapp.models import Project
from webapp.permissions import allows, may_make_projects

SESSION_KEY = "project"


class ProjectContext(TypedDict):
    """`project` is None where the user is in no project; `may_edit` asks for the member's role."""

    projects: list[Project]
    project: Project | None
    may_edit: bool
    may_make_projects: bool


def project(request: HttpRequest) -> ProjectContext:
    """Context processor: the project chosen in this session, else the first at hand."""
    projects = list(Project.objects.visible_to(request.user))
    chosen = current(request, projects)
    return {
        "projects": projects,
        "project": chosen,
        "may_edit": chosen is not None and allows(request.user, "edit", chosen),
        "may_make_projects": may_make_projects(request.user),
    }


def current(request: HttpRequest, projects: list[Project]) -> Project | None:
    """The project chosen in this session, else the first at hand, else None."""
    wanted = request.session.get(SESSION_KEY)
    chosen = [project for project in projects if project.public_id == wanted]
    return next(iter(chosen or projects), None)
