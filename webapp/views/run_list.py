"""The run list: one page of rows, a row that follows its run, and what is done to many at once."""

from __future__ import annotations

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from opdcore.contract.errors import BadInput
from webapp.models import Pair, Run, User
from webapp.permissions import allows, require
from webapp.services import run_list, runs
from webapp.views.scope import actor, chosen_project, visible

PAIRS_OFFERED = 100
# Column of the list, its heading, and whether it holds numbers.
HEADINGS = (
    ("overlap_ratio", "Overlap"),
    ("reward", "Token reward"),
    ("accuracy", "Accuracy"),
    ("gap_recovery", "Gap recovery"),
)


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    """The project's runs as the address asks for them; only the table where htmx asks."""
    project = chosen_project(request)
    query = run_list.Query.parse(request.GET)
    mine = Run.objects.visible_to(request.user).filter(project=project)
    page = run_list.read(mine, query)
    context = {
        "project": project,
        "query": query,
        "page": page,
        "columns": _columns(query),
        "may_launch": allows(request.user, "launch", project),
        "may_edit": allows(request.user, "edit", project),
    }
    if request.headers.get("HX-Target") == "run-table":
        return render(request, "runs/_table.html", context)
    context["pairs"] = Pair.objects.filter(project=project).only("public_id", "name")[
        :PAIRS_OFFERED
    ]
    context["statuses"] = Run.Status.choices
    context["outcomes"] = [(code, code.replace("_", " ")) for code in run_list.OUTCOMES]
    context["laboratory"] = Pair.objects.filter(project=project, is_laboratory=True).first()
    return render(request, "runs/index.html", context)


@require_GET
def row(request: HttpRequest, public_id: str) -> HttpResponse:
    """One row, which an active run asks for anew."""
    run = visible(Run.objects.listed(), request, public_id)
    context = {"run": run, "may_edit": allows(request.user, "edit", run.project)}
    return render(request, "runs/_row.html", context)


@require_POST
def bulk(request: HttpRequest) -> HttpResponse:
    """Cancels or tags the chosen runs."""
    project = chosen_project(request)
    chosen = request.POST.getlist("run")
    verb = request.POST.get("verb", "")
    rows = Run.objects.visible_to(request.user).filter(project=project, public_id__in=chosen)
    if not rows:
        messages.warning(request, "No run is chosen. Tick the boxes of some rows first.")
    elif verb == "cancel":
        require(actor(request), "launch", project)
        _cancel(request, list(rows), actor(request))
    elif verb == "tag":
        require(actor(request), "edit", project)
        _tag(request, list(rows), actor(request))
    return redirect(f"{request.POST.get('back') or '/runs/'}" if _is_own(request) else "runs")


def _is_own(request: HttpRequest) -> bool:
    """Whether the way back leads to the run list and nowhere else."""
    back = request.POST.get("back", "")
    return back.startswith("/runs/?") or back == "/runs/"


def _cancel(request: HttpRequest, rows: list[Run], user: User) -> None:
    ended = 0
    for run in rows:
        try:
            runs.cancel(run, actor=user)
        except BadInput:
            ended += 1
    stopped = len(rows) - ended
    told = f"{stopped} run{'s' if stopped != 1 else ''} told to stop."
    messages.success(request, told + (f" {ended} had already ended." if ended else ""))


def _tag(request: HttpRequest, rows: list[Run], user: User) -> None:
    tag = request.POST.get("tag", "").strip()
    if not tag:
        messages.warning(request, "The tag is empty. Write one beside the button.")
        return
    try:
        # All or none: which of them were tagged would not be said.
        with transaction.atomic():
            for run in rows:
                runs.set_tags(run, [*run.tags, tag], actor=user)
    except BadInput as error:
        messages.error(request, str(error))
        return
    messages.success(request, f"{len(rows)} tagged {tag}.")


def _columns(query: run_list.Query) -> list[dict[str, str]]:
    """Sortable number columns with their address and the direction that they have now."""
    return [
        {
            "label": label,
            "href": query.sorted_by(key),
            "sort": ("descending" if query.descending else "ascending") if query.key == key else "",
        }
        for key, label in HEADINGS
    ]
