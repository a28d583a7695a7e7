"""Models: list, page, registration, and the folders that may be read."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from webapp.forms.parts import HubModelForm, LocalModelForm, ModelRootForm, refuse
from webapp.models import ModelRoot, Project, RegisteredModel
from webapp.permissions import allows, require
from webapp.services import checkpoints, lineage, model_roots
from webapp.views.scope import actor, chosen_project, visible


@require_GET
def models(request: HttpRequest) -> HttpResponse:
    """The project's models, and the folders they may come from."""
    project = chosen_project(request)
    rows = RegisteredModel.objects.visible_to(request.user).filter(project=project)
    roots = ModelRoot.objects.visible_to(request.user).filter(project=project)
    context = {
        "models": rows.select_related("created_by", "run").defer("run__snapshot", "run__notes"),
        "roots": roots,
        "root_form": ModelRootForm(),
        "may_administer": allows(request.user, "administer", project),
    }
    return render(request, "models/index.html", context)


@require_http_methods(["GET", "POST"])
def new_model(request: HttpRequest) -> HttpResponse:
    """Two forms, for a folder and for a repository; `source` says which one was sent."""
    project = chosen_project(request)
    require(actor(request), "edit", project)
    source = request.POST.get("source")
    local = LocalModelForm(request.POST if source == "local" else None)
    hub = HubModelForm(request.POST if source == "hub" else None)
    if request.method == "POST":
        model = _registered(request, project, local, hub)
        if model is not None:
            messages.success(request, f"{model.name} is registered.")
            return redirect("model", model.public_id)
    roots = ModelRoot.objects.visible_to(request.user).filter(project=project)
    context = {"local": local, "hub": hub, "roots": roots, "source": source or "local"}
    return render(request, "models/new.html", context, status=422 if source else 200)


@require_GET
def model(request: HttpRequest, public_id: str) -> HttpResponse:
    row = visible(RegisteredModel.objects.select_related("project"), request, public_id)
    context = {
        "model": row,
        "descent": lineage.descent(row),
        "project": row.project,
        "as_student": row.pairs_as_student.all(),
        "as_teacher": row.pairs_as_teacher.select_related("pair"),
        "may_edit": allows(request.user, "edit", row.project),
    }
    return render(request, "models/detail.html", context)


@require_POST
def inspect_model(request: HttpRequest, public_id: str) -> HttpResponse:
    row = visible(RegisteredModel.objects.select_related("project"), request, public_id)
    try:
        row = checkpoints.inspect_again(row, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
    else:
        if row.state == RegisteredModel.State.READY:
            messages.success(request, "The folder was read again; it is sound.")
    return redirect("model", public_id)


@require_POST
def delete_model(request: HttpRequest, public_id: str) -> HttpResponse:
    row = visible(RegisteredModel.objects.select_related("project"), request, public_id)
    try:
        checkpoints.delete(row, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
        return redirect("model", public_id)
    left = "" if row.source_kind == RegisteredModel.Source.RUN else "; its files are untouched"
    messages.success(request, f"{row.name} is no longer registered{left}.")
    return redirect("models")


@require_POST
def add_root(request: HttpRequest) -> HttpResponse:
    project = chosen_project(request)
    require(actor(request), "administer", project)
    form = ModelRootForm(request.POST)
    if form.is_valid():
        try:
            model_roots.add(form.cleaned_data["path"], project=project, actor=actor(request))
        except BadInput as error:
            messages.error(request, f"{error.info.message} {error.info.remedy}")
    return redirect("models")


@require_POST
def remove_root(request: HttpRequest, public_id: str) -> HttpResponse:
    row = visible(ModelRoot.objects.select_related("project"), request, public_id)
    model_roots.remove(row, actor=actor(request))
    return redirect("models")


def _registered(
    request: HttpRequest, project: Project, local: LocalModelForm, hub: HubModelForm
) -> RegisteredModel | None:
    """The new model; None where a form has faults, which then stand at their fields."""
    form = local if local.is_bound else hub
    if not form.is_valid():
        return None
    said = form.cleaned_data
    try:
        if form is local:
            return checkpoints.register_local(
                said["name"], said["path"], project=project, actor=actor(request)
            )
        return checkpoints.register_hub(
            said["name"],
            said["repo"],
            revision=said["revision"],
            project=project,
            actor=actor(request),
        )
    except BadInput as error:
        refuse(form, [error.info])
        return None
