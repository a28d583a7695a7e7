"""Families: list, page, pack in and out; a pair's family and its control runs."""

from __future__ import annotations

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from webapp.forms.families import ControlsForm, FamilyNameForm, PackForm, PairFamilyForm
from webapp.models import Family, Pair
from webapp.permissions import allows, require
from webapp.services import controls, family_report
from webapp.services import families as service
from webapp.services.controls import ControlPlan
from webapp.services.runs import LaunchRefused
from webapp.views.pairs import pair_page
from webapp.views.scope import actor, chosen_project, visible


@require_http_methods(["GET", "POST"])
def families(request: HttpRequest) -> HttpResponse:
    """The project's families, and the form of another one."""
    project = chosen_project(request)
    form = FamilyNameForm(request.POST or None)
    if request.method == "POST":
        require(actor(request), "edit", project)
        if form.is_valid():
            try:
                made = service.create(
                    form.cleaned_data["name"], project=project, actor=actor(request)
                )
                return redirect("family", made.public_id)
            except BadInput as error:
                form.refuse([error.info])
    rows = Family.objects.visible_to(request.user).filter(project=project)
    context = {"families": rows.annotate(pair_count=Count("pairs")), "form": form}
    return render(request, "families/index.html", context, status=422 if form.errors else 200)


@require_GET
def family(request: HttpRequest, public_id: str) -> HttpResponse:
    return _page(request, _family(request, public_id))


@require_GET
def export(request: HttpRequest, public_id: str) -> HttpResponse:
    """The present calibration, as a pack that another family can import."""
    row = _family(request, public_id)
    text = row.calibration.model_dump_json(indent=1) + "\n"
    answer = HttpResponse(text, content_type="application/json")
    name = f"{slugify(row.name) or 'family'}-calibration.json"
    answer["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


@require_POST
def import_pack(request: HttpRequest, public_id: str) -> HttpResponse:
    row = _family(request, public_id)
    require(actor(request), "edit", row.project)
    form = PackForm(request.POST, request.FILES)
    if form.is_valid():
        file = form.cleaned_data["file"]
        raw = file.read(service.LARGEST_PACK_BYTES + 1)
        try:
            service.import_pack(row, raw, file_name=file.name, actor=actor(request))
        except BadInput as error:
            form.refuse([error.info])
        else:
            messages.success(request, f"{file.name} is imported; the family's own runs go first.")
            return redirect("family", public_id)
    return _page(request, row, pack_form=form, status=422)


@require_POST
def remove_pack(request: HttpRequest, public_id: str) -> HttpResponse:
    row = service.remove_pack(_family(request, public_id), actor=actor(request))
    messages.success(request, "The imported pack is removed.")
    return redirect("family", row.public_id)


@require_POST
def rename(request: HttpRequest, public_id: str) -> HttpResponse:
    row = _family(request, public_id)
    require(actor(request), "edit", row.project)
    form = FamilyNameForm(request.POST)
    if form.is_valid():
        try:
            service.rename(row, form.cleaned_data["name"], actor=actor(request))
            return redirect("family", public_id)
        except BadInput as error:
            form.refuse([error.info])
    return _page(request, row, name_form=form, status=422)


@require_POST
def delete(request: HttpRequest, public_id: str) -> HttpResponse:
    row = _family(request, public_id)
    service.delete(row, actor=actor(request))
    messages.success(request, f"{row.name} is deleted; its pairs and runs stay.")
    return redirect("families")


@require_POST
def choose(request: HttpRequest, public_id: str) -> HttpResponse:
    """Puts a pair into the chosen family, or into a new one of the typed name."""
    pair = _pair(request, public_id)
    require(actor(request), "edit", pair.project)
    form = PairFamilyForm(pair, request.POST)
    if form.is_valid():
        try:
            service.join(pair, actor=actor(request), **form.cleaned_data)
        except BadInput as error:
            form.refuse([error.info])
        else:
            told = f"is in {pair.family} now" if pair.family else "is in no family now"
            messages.success(request, f"{pair.name} {told}.")
            return redirect("pair", public_id)
    return pair_page(request, public_id, family_form=form, status=422)


@require_POST
def run_controls(request: HttpRequest, public_id: str) -> HttpResponse:
    """Launches the pair's control runs; the run list shows them."""
    pair = _pair(request, public_id)
    require(actor(request), "launch", pair.project)
    form = ControlsForm(request.POST)
    if form.is_valid():
        try:
            launched = controls.launch(pair, actor=actor(request), **form.cleaned_data)
        except LaunchRefused as refused:
            form.refuse(refused.problems)
        except BadInput as error:
            form.refuse([error.info])
        else:
            messages.success(request, f"{len(launched)} control runs are queued.")
            return redirect("pair", public_id)
    return pair_page(request, public_id, controls_form=form, status=422)


@require_POST
def controls_cost(request: HttpRequest, public_id: str) -> HttpResponse:
    """Fragment: what so many control runs would take."""
    pair = _pair(request, public_id)
    form = ControlsForm(request.POST)
    of_each = form.cleaned_data["of_each"] if form.is_valid() else 1
    return render(request, "families/_controls_cost.html", {"controls_plan": _plan(pair, of_each)})


def _plan(pair: Pair, of_each: int) -> ControlPlan | None:
    try:
        return controls.plan(pair, of_each=of_each)
    except BadInput:
        return None


def _family(request: HttpRequest, public_id: str) -> Family:
    return visible(Family.objects.select_related("project"), request, public_id)


def _pair(request: HttpRequest, public_id: str) -> Pair:
    rows = Pair.objects.with_models().select_related("project", "student", "family")
    return visible(rows, request, public_id)


def _page(
    request: HttpRequest,
    row: Family,
    *,
    name_form: FamilyNameForm | None = None,
    pack_form: PackForm | None = None,
    status: int = 200,
) -> HttpResponse:
    context = {
        "family": row,
        "project": row.project,
        "calibration": row.calibration,
        "pack": row.pack,
        "report": family_report.of(row),
        "pairs": row.pairs.with_models(),
        "name_form": name_form or FamilyNameForm(initial={"name": row.name}),
        "pack_form": pack_form or PackForm(),
        "may_edit": allows(request.user, "edit", row.project),
    }
    return render(request, "families/detail.html", context, status=status)
