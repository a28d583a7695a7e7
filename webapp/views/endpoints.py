"""Model servers of a project on one page: listed, registered, asked what they serve, removed."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from webapp.forms.parts import refuse
from webapp.forms.secrets import EndpointForm
from webapp.models import ModelEndpoint, Project
from webapp.permissions import allows, require
from webapp.services import endpoints as service
from webapp.views.scope import actor, chosen_project, visible


@require_http_methods(["GET", "POST"])
def endpoints(request: HttpRequest) -> HttpResponse:
    """The list; a POST registers one and asks it."""
    project = chosen_project(request)
    form = EndpointForm(request.POST or None)
    if request.method == "POST":
        require(actor(request), "administer", project)
        if form.is_valid() and _register(request, project, form):
            return redirect("endpoints")
    rows = ModelEndpoint.objects.visible_to(request.user).filter(project=project)
    context = {
        "project": project,
        "form": form,
        "endpoints": rows.select_related("created_by"),
        "may_administer": allows(request.user, "administer", project),
        "may_ask": allows(request.user, "launch", project),
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "models/endpoints.html", context, status=status)


@require_POST
def ask_endpoint(request: HttpRequest, public_id: str) -> HttpResponse:
    """What it serves now, kept and shown in its row."""
    service.probe(_endpoint(request, public_id), actor=actor(request))
    return redirect("endpoints")


@require_POST
def remove_endpoint(request: HttpRequest, public_id: str) -> HttpResponse:
    """Forgets one with its key."""
    endpoint = _endpoint(request, public_id)
    service.remove(endpoint, actor=actor(request))
    messages.success(request, f"{endpoint.name} is forgotten, and its key with it.")
    return redirect("endpoints")


def _endpoint(request: HttpRequest, public_id: str) -> ModelEndpoint:
    return visible(ModelEndpoint.objects.select_related("project"), request, public_id)


def _register(request: HttpRequest, project: Project, form: EndpointForm) -> bool:
    try:
        endpoint = service.register(project, **form.cleaned_data, actor=actor(request))
    except BadInput as error:
        refuse(form, [error.info])
        return False
    service.probe(endpoint, actor=actor(request))
    messages.success(request, f"{endpoint.name} is registered.")
    return True
