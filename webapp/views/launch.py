"""A new run on one page: choices, what is known of them while they are made, and the launch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract import needs
from opdcore.contract.errors import BadInput
from webapp.forms.devices import DEVICE_FIELDS, ROLE_FIELDS
from webapp.forms.launch import KnobsForm, LaunchForm
from webapp.models import Pair, Project, PromptSet, Recipe, Run
from webapp.permissions import allows, require
from webapp.services import launches, machines, usual_parts
from webapp.services.launches import Choice, Review
from webapp.services.runs import LaunchRefused
from webapp.views.scope import actor, chosen_project

NO_CONTENT = 204
FIELDS = ("pair", "train", "held_out", "recipe", "name", "keep_scores", *DEVICE_FIELDS)
# What is shown only where the recipe asks for it.
ASKED_FIELDS = needs.ROLES


@require_http_methods(["GET", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    """The form, filled in so that it can be launched as it is; a POST launches."""
    project = chosen_project(request)
    if request.method == "POST":
        require(actor(request), "launch", project)
        return _launch(request, project)
    _warm(request, project)
    parent = _parent(request, project)
    form = LaunchForm(project, initial=_usual(request, project, parent))
    return render(request, "runs/new.html", _page(request, project, form, parent=parent))


@require_POST
def check(request: HttpRequest) -> HttpResponse:
    """What is known of the choices as they stand: faults, warnings, examples, needs."""
    project = chosen_project(request)
    require(actor(request), "read", project)
    _warm(request, project)
    form = LaunchForm(project, request.POST)
    choice, knobs = _choice(form, request)
    review = launches.review(choice) if choice else None
    if review:
        form.refuse(review.problems)
    return render(request, "runs/_check.html", _checked(request, project, form, knobs, review))


@require_GET
def knobs(request: HttpRequest) -> HttpResponse:
    """The main knobs of a recipe, as it has them."""
    project = chosen_project(request)
    recipes = Recipe.objects.visible_to(request.user).filter(project=project)
    recipe = recipes.filter(public_id=request.GET.get("recipe", "")).first()
    context = {
        "knobs": KnobsForm(recipe) if recipe else None,
        "recipe": recipe,
        "form": LaunchForm(project, initial=_named(request.GET, ASKED_FIELDS)),
    }
    answer = render(request, "runs/_knobs.html", context)
    answer["HX-Trigger-After-Settle"] = "knobs-changed"
    return answer


@require_POST
def parts(request: HttpRequest) -> HttpResponse:
    """Prompts and recipe after another pair was chosen; nothing where they stay as they are."""
    project = chosen_project(request)
    require(actor(request), "read", project)
    moved = usual_parts.moved(project, request.POST)
    if all(request.POST.get(name, "") == value for name, value in moved.items()):
        return HttpResponse(status=NO_CONTENT)
    stays = _named(request.POST, ("pair", *ASKED_FIELDS))
    form = LaunchForm(project, initial=moved | stays)
    same_recipe = request.POST.get("knobs_of") == moved["recipe"]
    recipe = _chosen_recipe(form, project)
    turned = KnobsForm(recipe, request.POST) if recipe and same_recipe else None
    answer = render(request, "runs/_parts.html", _page(request, project, form, knobs_form=turned))
    answer["HX-Trigger-After-Settle"] = "knobs-changed"
    return answer


def _warm(request: HttpRequest, project: Project) -> None:
    """Whoever fills in this form may launch soon: a host whose job process retired wakes it now."""
    if allows(request.user, "launch", project):
        machines.warm()


def _launch(request: HttpRequest, project: Project) -> HttpResponse:
    form = LaunchForm(project, request.POST)
    choice, turned = _choice(form, request)
    if choice is not None:
        try:
            run = launches.launch(choice, project=project, actor=actor(request))
        except LaunchRefused as refused:
            form.refuse(refused.problems)
        except BadInput as error:
            form.refuse((error.info,))
        else:
            return redirect("run", run.public_id)
    context = _page(request, project, form, knobs_form=turned)
    return render(request, "runs/new.html", context, status=422)


def _choice(form: LaunchForm, request: HttpRequest) -> tuple[Choice | None, KnobsForm | None]:
    """The choice where all of it is sound, and the knobs as typed where they are the recipe's."""
    sound = form.is_valid()
    recipe = form.cleaned_data.get("recipe")
    if recipe is None:
        return None, None
    # Knobs on the page may still be those of the recipe that was chosen before.
    fresh = request.POST.get("knobs_of") == recipe.public_id
    knobs_form = KnobsForm(recipe, request.POST if fresh else None)
    if not sound or (fresh and not knobs_form.is_valid()):
        return None, knobs_form
    names = ("pair", "train", "held_out", "name", "keep_scores")
    chosen = {name: form.cleaned_data[name] for name in names}
    choice = Choice(
        **chosen,
        recipe=recipe,
        asked=form.asked(),
        turned=knobs_form.turned() if fresh else None,
        resources=form.resources(),
        parent=form.cleaned_data["parent"],
    )
    return choice, knobs_form


def _page(
    request: HttpRequest,
    project: Project,
    form: LaunchForm,
    *,
    knobs_form: KnobsForm | None = None,
    parent: Run | None = None,
) -> dict[str, Any]:
    recipe = _chosen_recipe(form, project)
    shown = knobs_form or (KnobsForm(recipe) if recipe else None)
    return {
        "project": project,
        "form": form,
        "knobs": shown,
        "recipe": recipe,
        "parent": parent,
        "missing": _missing(project),
        "may_launch": allows(request.user, "launch", project),
    }


def _checked(
    request: HttpRequest,
    project: Project,
    form: LaunchForm,
    knobs_form: KnobsForm | None,
    review: Review | None,
) -> dict[str, Any]:
    divided = [name for name in ROLE_FIELDS if name in request.POST]
    names = [*FIELDS, *divided]
    shown: dict[str, Iterable[object]] = {name: form.errors.get(name, []) for name in names}
    # A field that was not filled in yet is no fault to point at while typing.
    for name in ("pair", "train", "recipe"):
        if not request.POST.get(name):
            shown[name] = []
    if knobs_form is not None and knobs_form.asks_for:
        shown |= {name: form.errors.get(name, []) for name in ASKED_FIELDS}
    if knobs_form is not None:
        shown |= {path: knobs_form.errors.get(path, []) for path in knobs_form.fields}
    return {
        "errors": shown,
        "others": form.non_field_errors(),
        "pair": form.cleaned_data.get("pair"),
        "review": review,
        "incomplete": review is None and not any(shown.values()),
        "may_launch": allows(request.user, "launch", project),
    }


def _chosen_recipe(form: LaunchForm, project: Project) -> Recipe | None:
    chosen = form["recipe"].value()
    recipes = Recipe.objects.filter(project=project)
    return recipes.filter(public_id=chosen).first() if chosen else None


def _missing(project: Project) -> list[tuple[str, str, str]]:
    """Parts that the project has none of: what, why, and the page that makes one."""
    parts: list[tuple[str, QuerySet[Any], str, str]] = [
        ("pair", Pair.objects.filter(project=project), "a student with its teacher", "pairs"),
        ("prompt set", PromptSet.objects.filter(project=project).ready(), "prompts", "prompt-sets"),
        ("recipe", Recipe.objects.filter(project=project), "what is done", "recipes"),
    ]
    return [(what, why, url) for what, rows, why, url in parts if not rows.exists()]


def _parent(request: HttpRequest, project: Project) -> Run | None:
    """The run that this one is to be a changed copy of."""
    rows = Run.objects.visible_to(request.user).filter(project=project)
    return rows.filter(public_id=request.GET.get("from", "")).first()


def _usual(request: HttpRequest, project: Project, parent: Run | None) -> dict[str, str]:
    """What is filled in: the parent's parts, else those of the address, else the last or the lab's."""
    usual = usual_parts.of_run(parent) if parent else usual_parts.of_user(actor(request), project)
    asked = _named(request.GET, ("pair", "train", "held_out", *ASKED_FIELDS, "recipe", "name"))
    named = {"parent": parent.public_id, "name": f"{parent.name[:112]} again"} if parent else {}
    return usual | named | asked


def _named(sent: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Those of the values that were sent at all."""
    return {name: sent[name] for name in names if name in sent}
