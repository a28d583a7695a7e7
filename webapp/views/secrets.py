"""A project's secrets on one page: which there are, who set them, and a form that sets one."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from webapp.forms.parts import refuse
from webapp.forms.secrets import SecretForm
from webapp.models import Project, ProjectSecret
from webapp.permissions import allows, require
from webapp.services import project_secrets
from webapp.views.scope import actor, chosen_project, visible


@require_http_methods(["GET", "POST"])
def secrets(request: HttpRequest) -> HttpResponse:
    """The list; a POST sets or replaces one."""
    project = chosen_project(request)
    form = SecretForm(request.POST or None)
    if request.method == "POST":
        require(actor(request), "manage", project)
        if form.is_valid() and _put(request, project, form):
            return redirect("secrets")
    context = {
        "project": project,
        "form": form,
        "secrets": ProjectSecret.objects.visible_to(request.user)
        .filter(project=project)
        .select_related("set_by"),
        "may_manage": allows(request.user, "manage", project),
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "projects/secrets.html", context, status=status)


@require_POST
def delete_secret(request: HttpRequest, public_id: str) -> HttpResponse:
    """Forgets one."""
    secret = visible(ProjectSecret.objects.select_related("project"), request, public_id)
    project_secrets.delete(secret, actor=actor(request))
    messages.success(request, f"{secret.name} is forgotten; jobs started from now on lack it.")
    return redirect("secrets")


def _put(request: HttpRequest, project: Project, form: SecretForm) -> bool:
    name, value = form.cleaned_data["name"], form.cleaned_data["value"]
    try:
        secret = project_secrets.put(project, name, value, actor=actor(request))
    except BadInput as error:
        refuse(form, [error.info])
        return False
    messages.success(request, f"{secret.name} is set; jobs started from now on get it.")
    return True
