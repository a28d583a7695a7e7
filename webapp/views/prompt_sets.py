"""Prompt sets: list, upload, page with its rows, download, deletion with undo."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from webapp.forms.parts import PromptSetForm, refuse
from webapp.models import PromptSet
from webapp.permissions import allows, require
from webapp.services import prompt_sets as service
from webapp.views import downloads
from webapp.views.scope import actor, chosen_project, visible

ROWS_PER_PAGE = 20


@require_GET
def prompt_sets(request: HttpRequest) -> HttpResponse:
    project = chosen_project(request)
    rows = PromptSet.objects.visible_to(request.user).present().filter(project=project)
    gone = PromptSet.objects.visible_to(request.user).filter(
        project=project, public_id=request.GET.get("deleted", ""), deleted_at__isnull=False
    )
    context = {
        "prompt_sets": rows.defer("errors").select_related("created_by"),
        "deleted": gone.first(),
    }
    return render(request, "prompt_sets/index.html", context)


@require_http_methods(["GET", "POST"])
def new_prompt_set(request: HttpRequest) -> HttpResponse:
    project = chosen_project(request)
    require(actor(request), "edit", project)
    form = PromptSetForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        try:
            row = service.upload(
                form.cleaned_data["file"],
                name=form.cleaned_data["name"],
                project=project,
                actor=actor(request),
            )
        except BadInput as error:
            refuse(form, [error.info])
        else:
            return redirect("prompt-set", row.public_id)
    context = {"form": form}
    return render(request, "prompt_sets/new.html", context, status=422 if form.errors else 200)


@require_GET
def prompt_set(request: HttpRequest, public_id: str) -> HttpResponse:
    row = service.give_up_if_silent(_row(request, public_id))
    if request.headers.get("HX-Request") and row.state == PromptSet.State.IMPORTING:
        return render(request, "prompt_sets/_progress.html", {"prompt_set": row})
    context = {
        "prompt_set": row,
        "project": row.project,
        "may_edit": allows(request.user, "edit", row.project),
        "versions": PromptSet.objects.present().filter(project=row.project, name=row.name),
        **(_rows(request, row) if row.state == PromptSet.State.READY else {}),
    }
    answer = render(request, "prompt_sets/detail.html", context)
    if request.headers.get("HX-Request"):
        answer["HX-Refresh"] = "true"
    return answer


@require_GET
def download_prompt_set(
    request: HttpRequest, public_id: str
) -> HttpResponse | StreamingHttpResponse:
    row = _row(request, public_id)
    if row.state != PromptSet.State.READY:
        return redirect("prompt-set", public_id)
    name = f"{row.name}-v{row.version}.jsonl"
    return downloads.stream(request, service.pieces(row), name=name)


@require_POST
def delete_prompt_set(request: HttpRequest, public_id: str) -> HttpResponse:
    row = _row(request, public_id)
    try:
        service.delete(row, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
        return redirect("prompt-set", public_id)
    return redirect(f"{reverse('prompt-sets')}?deleted={public_id}")


@require_POST
def restore_prompt_set(request: HttpRequest, public_id: str) -> HttpResponse:
    row = _row(request, public_id)
    service.restore(row, actor=actor(request))
    return redirect("prompt-set", public_id)


def _row(request: HttpRequest, public_id: str) -> PromptSet:
    return visible(PromptSet.objects.select_related("project"), request, public_id)


def _rows(request: HttpRequest, row: PromptSet) -> dict[str, object]:
    """One page of rows; reading on means reading over the rows before, which are cheap lines."""
    last = (row.rows - 1) // ROWS_PER_PAGE + 1
    asked = request.GET.get("page", "1")
    page = min(max(1, int(asked) if asked.isascii() and asked.isdigit() else 1), last)
    start = (page - 1) * ROWS_PER_PAGE
    prompts = service.page_of(row, start=start, count=ROWS_PER_PAGE)
    return {
        "numbered": list(enumerate(prompts, start=start + 1)),
        "page": page,
        "last_page": last,
        "newer": page - 1 or None,
        "older": page + 1 if page < last else None,
        "bars": _bars(row.stats["histogram"]),
    }


def _bars(histogram: list[dict[str, int]]) -> list[dict[str, int | float]]:
    """The histogram's bars with their place in a drawing 100 high and 10 wide a bar."""
    tallest = max(bucket["count"] for bucket in histogram)
    return [
        {
            "x": 10 * place,
            "y": 100 - 100 * bucket["count"] / tallest,
            "height": 100 * bucket["count"] / tallest,
            "to": bucket["to"],
            "count": bucket["count"],
        }
        for place, bucket in enumerate(histogram)
    ]
