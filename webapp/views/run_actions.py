"""What people do to a run: every write is a POST, and its answer the part of the page it changed."""

from __future__ import annotations

import re
from collections.abc import Callable

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from opdcore.contract.errors import BadInput
from webapp.models import Comment, Run
from webapp.permissions import allows
from webapp.services import checkpoints, replays, runs
from webapp.views.scope import actor, visible

PAGE = Run.objects.select_related("project", "pair", "recipe", "created_by", "reviewed_by")
PARTS = ("train_set", "held_out_set", "teacher_content_set", "outside_set", "writer", "judge")


@require_POST
def cancel(request: HttpRequest, public_id: str) -> HttpResponse:
    """Ends a queued run, or asks a running one to stop."""
    run = visible(PAGE.all(), request, public_id)
    try:
        runs.cancel(run, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
    return redirect("run", public_id)


@require_POST
def resume(request: HttpRequest, public_id: str) -> HttpResponse:
    """Queues the run's next attempt."""
    run = visible(PAGE.all(), request, public_id)
    try:
        runs.resume(run, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
    return redirect("run", public_id)


@require_POST
def clone(request: HttpRequest, public_id: str) -> HttpResponse:
    """Launches the same again, and opens it."""
    run = visible(PAGE.select_related(*PARTS), request, public_id)
    try:
        again = runs.clone(run, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
        return redirect("run", public_id)
    messages.success(request, f"Launched {again.name}.")
    return redirect("run", again.public_id)


@require_POST
def replay(request: HttpRequest, public_id: str) -> HttpResponse:
    """Launches the same without its teacher, and opens it."""
    run = visible(PAGE.select_related(*PARTS), request, public_id)
    try:
        again = replays.replay(run, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
        return redirect("run", public_id)
    messages.success(request, f"Launched {again.name}.")
    return redirect("run", again.public_id)


@require_POST
def register_output(request: HttpRequest, public_id: str) -> HttpResponse:
    """Makes the trained student a model of the project, and opens it."""
    run = visible(PAGE.all(), request, public_id)
    try:
        model = checkpoints.register_output(run, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
        return redirect(f"{reverse('run', args=[public_id])}#artifacts")
    messages.success(request, f"{model.name} is registered and can be part of a pair.")
    return redirect("model", model.public_id)


@require_POST
def rename(request: HttpRequest, public_id: str) -> HttpResponse:
    """Gives the run another name."""
    run = visible(PAGE.all(), request, public_id)
    error = None
    try:
        run = runs.rename(run, request.POST.get("name", ""), actor=actor(request))
    except BadInput as refused:
        error = f"{refused.info.message} {refused.info.remedy}"
    context = {"run": run, "may_edit": True, "error": error, "saved": error is None}
    return render(request, "runs/_name.html", context)


@require_POST
def notes(request: HttpRequest, public_id: str) -> HttpResponse:
    """Replaces the notes."""
    run = visible(PAGE.all(), request, public_id)
    run = runs.set_notes(run, request.POST.get("notes", ""), actor=actor(request))
    return render(request, "runs/_notes.html", {"run": run, "may_edit": True, "saved": True})


@require_POST
def tags(request: HttpRequest, public_id: str) -> HttpResponse:
    """Adds the tags of `add`, by comma, and takes `remove` away."""
    run = visible(PAGE.all(), request, public_id)
    added = re.split(r"\s*,\s*", request.POST.get("add", ""))
    kept = [tag for tag in run.tags if tag != request.POST.get("remove")]
    error = None
    try:
        run = runs.set_tags(run, [*kept, *added], actor=actor(request))
    except BadInput as refused:
        error = f"{refused.info.message} {refused.info.remedy}"
    return render(request, "runs/_tags.html", {"run": run, "may_edit": True, "error": error})


@require_POST
def comment(request: HttpRequest, public_id: str) -> HttpResponse:
    """Adds a comment."""
    run = visible(PAGE.all(), request, public_id)
    return _said(request, run, lambda text: runs.comment(run, text, actor=actor(request)))


@require_POST
def edit_comment(request: HttpRequest, public_id: str, comment_id: int) -> HttpResponse:
    """Changes one's own comment."""
    run = visible(PAGE.all(), request, public_id)
    said = get_object_or_404(Comment, run=run, pk=comment_id)
    return _said(request, run, lambda text: runs.edit_comment(said, text, actor=actor(request)))


@require_POST
def review(request: HttpRequest, public_id: str) -> HttpResponse:
    """Sets the review state."""
    run = visible(PAGE.all(), request, public_id)
    error = None
    try:
        run = runs.review(run, request.POST.get("review", ""), actor=actor(request))
    except BadInput as refused:
        error = f"{refused.info.message} {refused.info.remedy}"
    context = {"run": run, "may_review": True, "error": error, "review_states": Run.Review.choices}
    return render(request, "runs/_review.html", context)


def _said(request: HttpRequest, run: Run, act: Callable[[str], Comment]) -> HttpResponse:
    error, text = None, request.POST.get("text", "")
    try:
        act(text)
        text = ""
    except BadInput as refused:
        error = f"{refused.info.message} {refused.info.remedy}"
    context = {
        "run": run,
        "comments": run.comments.select_related("author"),
        "may_comment": allows(request.user, "comment", run.project),
        "error": error,
        "text": text,
    }
    return render(request, "runs/_comments.html", context)
