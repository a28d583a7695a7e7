"""The page of a rescue: the verdict, the plan to be edited, and the click that launches the child."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from opdcore.contract.rescue import RescuePlan
from webapp.forms.rescue import RescueForm
from webapp.models import Run
from webapp.permissions import allows, require
from webapp.services import exports, health, histories, launches, machines, proofs, rescues
from webapp.services.asked_parts import AskedParts
from webapp.services.launches import Choice
from webapp.services.runs import LaunchRefused
from webapp.views import rescue_offers
from webapp.views.scope import actor, visible

REFUSED, UNSOUND = 409, 422


@require_http_methods(["GET", "POST"])
def rescue(request: HttpRequest, public_id: str) -> HttpResponse:
    """The plan; a POST launches it as it was left."""
    run = _run(request, public_id)
    try:
        planned = rescues.plan_of(run)
    except BadInput as error:
        return _refused(request, run, error)
    if planned.recipe is None:
        return render(request, "runs/rescue.html", _context(request, run, planned, None))
    if request.method == "POST":
        return _accept(request, run, planned)
    if allows(request.user, "launch", run.project):
        machines.warm()
    context = _context(request, run, planned, RescueForm(planned))
    return render(request, "runs/rescue.html", context)


@require_POST
def check(request: HttpRequest, public_id: str) -> HttpResponse:
    """What the plan as it stands takes, and what speaks against it."""
    run = _run(request, public_id)
    require(actor(request), "read", run.project)
    try:
        planned = rescues.plan_of(run)
    except BadInput as error:
        return render(request, "runs/_rescue_check.html", {"run": run, "refused": error.info})
    if planned.recipe is None:
        return HttpResponse(status=REFUSED)
    form = RescueForm(planned, request.POST)
    sound = form.is_valid()
    review = launches.review(_choice(run, form)) if sound else None
    context = {"run": run, "form": form, "review": review, "has_moved": form.has_moved}
    return render(request, "runs/_rescue_check.html", context)


@require_GET
def export(request: HttpRequest, public_id: str, trainer: str) -> HttpResponse:
    """The plan's recipe as another trainer's configuration."""
    run = _run(request, public_id)
    try:
        recipe = rescues.plan_of(run).recipe
    except BadInput as error:
        raise Http404(error.info.message) from error
    if recipe is None or trainer not in exports.NAMES:
        raise Http404("There is no such file of this plan.")
    answer = HttpResponse(exports.write(recipe, trainer), content_type="application/yaml")
    name = f"{slugify(run.name) or 'run'}-rescue-{trainer}.yaml"
    answer["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


def _accept(request: HttpRequest, run: Run, planned: RescuePlan) -> HttpResponse:
    require(actor(request), "launch", run.project)
    form = RescueForm(planned, request.POST)
    if form.has_moved:
        form = RescueForm(planned)
        messages.warning(request, "The run went on meanwhile, and its plan is another. Look again.")
    elif form.is_valid():
        try:
            child = rescues.accept(
                run,
                actor=actor(request),
                document=form.document,
                control=form.cleaned_data["control"],
            )
        except LaunchRefused as refused:
            for problem in refused.problems:
                form.add_error(None, f"{problem.message} {problem.remedy}")
        except BadInput as error:
            form.add_error(None, f"{error.info.message} {error.info.remedy}")
        else:
            return redirect("run", child.public_id)
    return render(
        request, "runs/rescue.html", _context(request, run, planned, form), status=UNSOUND
    )


def _choice(run: Run, form: RescueForm) -> Choice:
    return Choice(
        pair=run.pair,
        train=run.train_set,
        held_out=run.held_out_set,
        recipe=run.recipe,
        turned=form.document,
        resources=run.resources,
        asked=AskedParts.of_run(run).for_recipe(form.document or run.recipe.contract),
    )


def _refused(request: HttpRequest, run: Run, error: BadInput) -> HttpResponse:
    context = {"run": run, "refused": error.info}
    status = 200 if request.method == "GET" else REFUSED
    return render(request, "runs/rescue.html", context, status=status)


def _context(
    request: HttpRequest, run: Run, planned: RescuePlan, form: RescueForm | None
) -> dict[str, Any]:
    found = histories.found(run)
    monitored = found is not None and found.failing is not None
    latest = health.of(run) if monitored else None
    said = latest.said if latest and latest.said.verdict == planned.verdict else None
    return {
        "run": run,
        "planned": planned,
        "said": said or health.said(planned.verdict),
        "of": "rescue" if latest else "rescue_pair",
        "form": form,
        "offers": rescue_offers.of(run, planned),
        "trainers": exports.NAMES.items(),
        "rate": proofs.rate(run.project, planned.verdict.code),
        "may_launch": allows(request.user, "launch", run.project),
    }


def _run(request: HttpRequest, public_id: str) -> Run:
    related = ("project", "pair__student", "recipe", "train_set", "held_out_set", "parent")
    return visible(Run.objects.select_related(*related), request, public_id)
