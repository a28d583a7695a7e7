"""Projects: a new one, who is in it, and what was changed in it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from webapp.forms.account import MemberForm, NewUserForm, ProjectForm
from webapp.forms.parts import refuse
from webapp.models import AuditEntry, Project, Role, User
from webapp.permissions import allows, require, require_project_maker
from webapp.services import projects
from webapp.views.scope import actor, chosen_project

ENTRIES_PER_PAGE = 50
# Its form stands beside the one for members, whose fields have the same names.
NEW_USER_IDS = "new_%s"


@require_http_methods(["GET", "POST"])
def new_project(request: HttpRequest) -> HttpResponse:
    """A form for a name; the new project is chosen at once."""
    require_project_maker(actor(request))
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        made = projects.create(form.cleaned_data["name"], actor=actor(request))
        messages.success(request, f"{made.name} is there, with the recipes that every project has.")
        return redirect(f"{reverse('home')}?{urlencode({'project': made.public_id})}")
    status = 422 if request.method == "POST" else 200
    return render(request, "projects/new.html", {"form": form}, status=status)


@require_http_methods(["GET", "POST"])
def members(request: HttpRequest) -> HttpResponse:
    """Who is in the project, and a form that sets a role."""
    project = chosen_project(request)
    form = MemberForm(request.POST or None)
    if request.method == "POST":
        require(actor(request), "administer", project)
        if form.is_valid() and _set_role(request, form):
            return redirect("members")
    return _members(request, project, form=form)


@require_POST
def new_user(request: HttpRequest) -> HttpResponse:
    """A user who is new here altogether, as a member; the first password is shown once."""
    project = chosen_project(request)
    require(actor(request), "administer", project)
    form = NewUserForm(request.POST, auto_id=NEW_USER_IDS)
    first_login = None
    if form.is_valid():
        try:
            first_login = projects.add_new_user(
                project,
                form.cleaned_data["username"],
                role=Role(form.cleaned_data["role"]),
                actor=actor(request),
            )
        except BadInput as error:
            refuse(form, [error.info])
    return _members(
        request, project, new_user=None if first_login else form, first_login=first_login
    )


@require_POST
def remove_member(request: HttpRequest, username: str) -> HttpResponse:
    """Takes somebody out of the project; their account stays."""
    project = chosen_project(request)
    require(actor(request), "administer", project)
    user = get_object_or_404(User, username=username)
    try:
        projects.remove_member(project, user, actor=actor(request))
    except BadInput as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{user.username} is no longer in {project.name}.")
    return redirect("members")


@require_GET
def audit_log(request: HttpRequest) -> HttpResponse:
    """What was changed in the project, newest first."""
    project = chosen_project(request)
    entries = AuditEntry.objects.visible_to(request.user).filter(project=project)
    page = Paginator(entries.select_related("actor"), ENTRIES_PER_PAGE).get_page(
        request.GET.get("page")
    )
    return render(request, "projects/audit_log.html", {"project": project, "page": page})


def _members(
    request: HttpRequest,
    project: Project,
    *,
    form: MemberForm | None = None,
    new_user: NewUserForm | None = None,
    first_login: projects.FirstLogin | None = None,
) -> HttpResponse:
    may_administer = allows(request.user, "administer", project)
    context: dict[str, Any] = {
        "project": project,
        "form": form or MemberForm(),
        "new_user": new_user or NewUserForm(auto_id=NEW_USER_IDS),
        "first_login": first_login,
        "memberships": project.memberships.select_related("user").order_by("user__username"),
        "may_administer": may_administer,
        "may_make_users": may_administer and actor(request).is_staff,
    }
    return render(request, "projects/members.html", context)


def _set_role(request: HttpRequest, form: MemberForm) -> bool:
    try:
        projects.set_role(
            chosen_project(request),
            form.cleaned_data["user"],
            role=Role(form.cleaned_data["role"]),
            actor=actor(request),
        )
    except BadInput as error:
        form.add_error("role", f"{error.info.message} {error.info.remedy}")
        return False
    return True
