"""Recipes: list, page, the generated form with its check while typing, YAML, differences."""

from __future__ import annotations

from django.contrib import messages
from django.db.models import Count
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.forms.parts import YamlForm
from webapp.forms.recipe import STAGES, RecipeForm
from webapp.models import Project, Recipe, Run
from webapp.permissions import allows, require
from webapp.services import exports, histories, rescues
from webapp.services import recipes as service
from webapp.services.recipe_yaml import BadRecipe, read_yaml, write_yaml
from webapp.views.scope import actor, chosen_project, visible

STARTING = RecipeDocument.model_validate({"name": "New recipe", "stages": [{"kind": "distill"}]})


@require_GET
def recipes(request: HttpRequest) -> HttpResponse:
    """The newest version of each recipe."""
    project = chosen_project(request)
    rows = Recipe.objects.visible_to(request.user).filter(project=project).newest()
    counted = rows.annotate(run_count=Count("runs")).select_related("created_by")
    return render(request, "recipes/index.html", {"recipes": counted})


@require_http_methods(["GET", "POST"])
def edit_recipe(request: HttpRequest) -> HttpResponse:
    """The form: of `?from=`, of what `?reinforce=` that run needs, or of a plain recipe.

    A change of its stages saves nothing.
    """
    project = chosen_project(request)
    require(actor(request), "edit", project)
    if request.method == "GET":
        return _form(request, RecipeForm.of(_source(request)))
    form = RecipeForm.typed(request.POST)
    changed = _with_stages_changed(request, form)
    if changed is not None:
        return _form(request, changed)
    return _saved(request, project, form) or _form(request, form, status=422)


@require_POST
def check_recipe(request: HttpRequest) -> HttpResponse:
    """What is wrong with the form as typed, by field name."""
    require(actor(request), "read", chosen_project(request))
    form = RecipeForm.typed(request.POST)
    form.document()
    return JsonResponse({"faults": form.fault_texts()})


@require_http_methods(["GET", "POST"])
def import_recipe(request: HttpRequest) -> HttpResponse:
    project = chosen_project(request)
    require(actor(request), "edit", project)
    form = YamlForm(request.POST or None, request.FILES or None)
    problems: tuple[ErrorInfo, ...] = ()
    if request.method == "POST" and form.is_valid():
        try:
            document = read_yaml(form.cleaned_data["text"])
            recipe = service.save(document, project=project, actor=actor(request))
        except BadRecipe as error:
            problems = error.problems
        except BadInput as error:
            problems = (error.info,)
        else:
            messages.success(request, f"{recipe} is saved.")
            return redirect("recipe", recipe.public_id)
    context = {"form": form, "problems": problems}
    return render(request, "recipes/import.html", context, status=422 if form.is_bound else 200)


@require_GET
def recipe(request: HttpRequest, public_id: str) -> HttpResponse:
    """One version: its knobs, its YAML, and how it differs from another one (`?against=`)."""
    row = visible(Recipe.objects.select_related("project", "created_by"), request, public_id)
    versions = list(Recipe.objects.filter(project=row.project, name=row.name))
    against = _against(request, row, versions)
    context = {
        "recipe": row,
        "project": row.project,
        "document": row.contract,
        "shown": RecipeForm.of(row.contract),
        "yaml": write_yaml(row.contract),
        "versions": versions,
        "against": against,
        "changes": service.changes(against.document, row.document) if against else [],
        "run_count": row.runs.count(),
        "trainers": exports.NAMES.items() if any(row.contract.steps_by_stage) else (),
        "may_edit": allows(request.user, "edit", row.project),
    }
    return render(request, "recipes/detail.html", context)


@require_GET
def download_recipe(request: HttpRequest, public_id: str) -> HttpResponse:
    row = visible(Recipe.objects.all(), request, public_id)
    return _file(write_yaml(row.contract), f"{slugify(row.name) or 'recipe'}-v{row.version}")


@require_GET
def export_recipe(request: HttpRequest, public_id: str, trainer: str) -> HttpResponse:
    """The recipe as another trainer's configuration."""
    row = visible(Recipe.objects.all(), request, public_id)
    if trainer not in exports.NAMES:
        raise Http404(f"Recipes are written for {', '.join(exports.NAMES)}, not for {trainer}.")
    text = exports.write(row.contract, trainer)
    return _file(text, f"{slugify(row.name) or 'recipe'}-v{row.version}-{trainer}")


def _file(text: str, name: str) -> HttpResponse:
    answer = HttpResponse(text, content_type="application/yaml")
    answer["Content-Disposition"] = f'attachment; filename="{name}.yaml"'
    return answer


def _source(request: HttpRequest) -> RecipeDocument:
    reinforcing = request.GET.get("reinforce")
    if reinforcing:
        run = visible(Run.objects.all(), request, reinforcing)
        try:
            return rescues.reinforced(histories.recipe_of(run))
        except BadInput as error:
            raise Http404(error.info.message) from error
    public_id = request.GET.get("from")
    return visible(Recipe.objects.all(), request, public_id).contract if public_id else STARTING


def _with_stages_changed(request: HttpRequest, form: RecipeForm) -> RecipeForm | None:
    """The form after `action`, such as add:evaluate or up:1; None where it is save."""
    verb, _, what = request.POST.get("action", "save").partition(":")
    if verb == "add" and what in STAGES:
        return form.added(what)
    if verb in ("up", "down", "remove") and what.isdigit() and int(what) < len(form.stages):
        return form.moved(int(what), verb)  # type: ignore[arg-type]
    return None


def _saved(request: HttpRequest, project: Project, form: RecipeForm) -> HttpResponse | None:
    document = form.document()
    if document is None:
        return None
    try:
        recipe = service.save(document, project=project, actor=actor(request))
    except BadInput as error:
        form.head.add_error("name", f"{error.info.message} {error.info.remedy}")
        return None
    messages.success(request, f"{recipe} is saved.")
    return redirect("recipe", recipe.public_id)


def _form(request: HttpRequest, form: RecipeForm, *, status: int = 200) -> HttpResponse:
    return render(request, "recipes/edit.html", {"form": form}, status=status)


def _against(request: HttpRequest, row: Recipe, versions: list[Recipe]) -> Recipe | None:
    """The version that was asked for, else the one before."""
    wanted = request.GET.get("against")
    if wanted:
        return visible(Recipe.objects.filter(project=row.project), request, wanted)
    return next((one for one in versions if one.version < row.version), None)
