"""Runs: launched, cancelled, cloned, resumed; their notes, tags, comments and review.

It writes rows and wakes a worker. What executes a run, and where, it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from kombu.exceptions import OperationalError

from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.celery import app
from webapp.models import (
    Comment,
    Pair,
    Project,
    PromptSet,
    Recipe,
    Run,
    User,
)
from webapp.models.ownership import Owned
from webapp.permissions import Action, require
from webapp.services import audit, estimates, launch_checks, launch_preview, scores, serving
from webapp.services.asked_parts import NOTHING_ASKED, AskedParts
from webapp.services.predictions import prediction
from webapp.services.resources import as_stored
from webapp.services.run_documents import hub_models, snapshot

log = structlog.get_logger(__name__)

WAKE_TASK = "workers.wake"
RESUMABLE = (Run.Status.FAILED, Run.Status.CANCELLED, Run.Status.PAUSED)
MOST_TAGS = 20
LONGEST_TAG = 40
LONGEST_COMMENT = 20_000


class LaunchRefused(BadInput):
    """A launch that would fail; `problems` holds every reason, the first one is this error."""

    def __init__(self, problems: Sequence[ErrorInfo]) -> None:
        first = problems[0]
        super().__init__(first.code, first.message, remedy=first.remedy, field=first.field)
        self.problems = tuple(problems)


@transaction.atomic
def launch(  # noqa: PLR0913 (what a run is made of)
    *,
    actor: User,
    project: Project,
    pair: Pair,
    recipe: Recipe,
    train: PromptSet,
    held_out: PromptSet | None = None,
    asked: AskedParts = NOTHING_ASKED,
    name: str = "",
    resources: dict[str, Any] | None = None,
    parent: Run | None = None,
    relation: str | None = None,
    start: dict[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
    kept_scores: dict[str, Any] | None = None,
) -> Run:
    """Queues a run with a snapshot of all it is made of; raises LaunchRefused, or PermissionDenied.

    `start` is a checkpoint as `starts.taken` tells it, `lineage` why this run was made from its parent,
    `kept_scores` what becomes of its teachers' scores, as `scores` freezes it.
    """
    require(actor, "launch", project)
    _same_project(project, pair=pair, recipe=recipe, train=train, held_out=held_out, parent=parent)
    _same_project(project, **asked.by_role())
    document = recipe.contract
    wanted = as_stored(resources or {})
    found = launch_checks.problems(
        pair,
        document,
        train=train,
        held_out=held_out,
        asked=asked,
        resources=wanted,
        kept_scores=kept_scores,
    )
    if found:
        raise LaunchRefused(found)
    frozen = snapshot(pair, recipe, train=train, held_out=held_out, asked=asked) | {
        "start": start,
        "lineage": lineage,
        "serving": serving.frozen(project, wanted, document),
        "scores": kept_scores,
    }
    run = Run.objects.create(
        project=project,
        created_by=actor,
        name=name.strip()[:120] or _name(pair, recipe, project),
        pair=pair,
        recipe=recipe,
        train_set=train,
        held_out_set=held_out,
        teacher_content_set=asked.teacher_content,
        outside_set=asked.outside,
        writer=asked.writer,
        judge=asked.judge,
        parent=parent,
        relation=relation,
        resources=wanted,
        teacher_server=serving.teacher_server(pair, wanted, document),
        downloads=bool(hub_models(frozen)),
        steps_total=sum(document.steps_by_stage),
        predicted=_predicted(pair, document, train, wanted),
        snapshot=frozen,
    )
    detail = {"name": run.name, "parent": parent.public_id if parent else None}
    audit.record(actor, "launch", project=project, about=run, detail=detail)
    transaction.on_commit(wake)
    return run


def _predicted(
    pair: Pair, recipe: RecipeDocument, train: PromptSet, wanted: dict[str, Any]
) -> dict[str, Any] | None:
    """What the run is taken to need, as the check of the launch shows it; None where that is not known."""
    try:
        found = estimates.of(
            pair,
            recipe,
            longest_prompt=launch_preview.longest_prompt(pair, train),
            tags=launch_preview.tag_counts(train),
            resources=wanted,
        )
    except OSError as error:
        log.warning("nothing was predicted: the prompts cannot be read", error=str(error))
        return None
    return prediction(found).model_dump(mode="json") if found else None


def wake() -> None:
    """Tells a worker that something is queued; a worker's sweep finds it too, so it may fail."""
    try:
        app.send_task(WAKE_TASK, ignore_result=True, retry=False)
    except OperationalError as error:
        log.warning("broker away: the next sweep finds the run", error=str(error))


@transaction.atomic
def cancel(run: Run, *, actor: User) -> Run:
    """Ends a queued or paused run at once; asks a running one to stop after its step."""
    run = _locked(run, actor, "launch")
    if run.has_ended:
        raise BadInput(
            "run.ended",
            f"{run.name} has already {run.get_status_display().lower()}.",
            remedy="There is nothing to cancel.",
            field="status",
        )
    if run.status in (Run.Status.QUEUED, Run.Status.PAUSED):
        run.status = Run.Status.CANCELLED
        run.finished_at = timezone.now()
    run.cancel_requested_at = run.cancel_requested_at or timezone.now()
    run.save(update_fields=["status", "finished_at", "cancel_requested_at"])
    audit.record(actor, "cancel", project=run.project, about=run)
    return run


@transaction.atomic
def resume(run: Run, *, actor: User) -> Run:
    """Queues a run again that failed, was cancelled or paused, to go on from its last checkpoint."""
    run = _locked(run, actor, "launch")
    if run.status not in RESUMABLE:
        raise BadInput(
            "run.not_resumable",
            f"{run.name} is {run.get_status_display().lower()}.",
            remedy="Only a failed, cancelled or paused run can be resumed; clone it to run it anew.",
            field="status",
        )
    run.status = Run.Status.QUEUED
    run.queued_at = timezone.now()
    run.losses = 0
    run.cancel_requested_at = run.finished_at = run.error = run.progress = None
    run.save(
        update_fields=[
            "status", "queued_at", "losses", "cancel_requested_at", "finished_at", "error",
            "progress",
        ]
    )  # fmt: skip
    audit.record(actor, "resume", project=run.project, about=run, detail={"attempt": run.attempt})
    transaction.on_commit(wake)
    return run


def clone(run: Run, *, actor: User, name: str = "") -> Run:
    """Launches the same pair, recipe and prompt sets again as a child of the run; a replay asks its teacher."""
    kept = scores.of_run(run)
    return again(
        run,
        actor=actor,
        name=name or f"{run.name[:112]} again",
        relation=Run.Relation.CLONE,
        resources=run.resources,
        kept_scores=None if scores.is_replay(kept) else kept,
    )


def again(
    run: Run,
    *,
    actor: User,
    name: str,
    relation: str,
    resources: dict[str, Any],
    kept_scores: dict[str, Any] | None,
) -> Run:
    """Launches what the run is made of once more, as its child."""
    return launch(
        actor=actor,
        project=run.project,
        pair=run.pair,
        recipe=run.recipe,
        train=run.train_set,
        held_out=run.held_out_set,
        asked=AskedParts.of_run(run),
        name=name,
        resources=resources,
        parent=run,
        relation=relation,
        start=run.snapshot.get("start"),
        kept_scores=kept_scores,
    )


@transaction.atomic
def rename(run: Run, name: str, *, actor: User) -> Run:
    """Gives the run another name."""
    run = _locked(run, actor, "edit")
    if not name.strip():
        raise BadInput("run.no_name", "The name is empty.", remedy="Give a name.", field="name")
    run.name = name.strip()[:120]
    run.save(update_fields=["name"])
    audit.record(actor, "rename", project=run.project, about=run, detail={"name": run.name})
    return run


@transaction.atomic
def set_notes(run: Run, notes: str, *, actor: User) -> Run:
    """Replaces the run's notes."""
    run = _locked(run, actor, "edit")
    run.notes = notes
    run.save(update_fields=["notes"])
    audit.record(actor, "set_notes", project=run.project, about=run)
    return run


@transaction.atomic
def set_tags(run: Run, tags: Sequence[str], *, actor: User) -> Run:
    """Replaces the run's tags, each once, in the order given."""
    run = _locked(run, actor, "edit")
    run.tags = _tags(tags)
    run.save(update_fields=["tags"])
    audit.record(actor, "set_tags", project=run.project, about=run, detail={"tags": run.tags})
    return run


@transaction.atomic
def comment(run: Run, text: str, *, actor: User) -> Comment:
    """Adds a comment."""
    run = _locked(run, actor, "comment")
    said = Comment.objects.create(run=run, author=actor, text=_words(text))
    audit.record(actor, "comment", project=run.project, about=run, detail={"comment": said.pk})
    return said


@transaction.atomic
def edit_comment(said: Comment, text: str, *, actor: User) -> Comment:
    """Changes one's own comment; nobody edits another's words."""
    run = _locked(said.run, actor, "comment")
    if said.author_id != actor.pk:
        raise BadInput(
            "comment.not_yours",
            f"This comment is {said.author}'s.",
            remedy="Answer it with one of your own.",
            field="text",
        )
    said.text, said.edited_at = _words(text), timezone.now()
    said.save(update_fields=["text", "edited_at"])
    audit.record(actor, "edit_comment", project=run.project, about=run, detail={"comment": said.pk})
    return said


@transaction.atomic
def review(run: Run, state: str, *, actor: User) -> Run:
    """Sets the review state and who set it."""
    run = _locked(run, actor, "review")
    if state not in Run.Review.values:
        raise BadInput(
            "run.review",
            f"{state!r} is no review state.",
            remedy=f"Choose one of {', '.join(Run.Review.values)}.",
            field="review",
        )
    run.review, run.reviewed_by, run.reviewed_at = state, actor, timezone.now()
    run.save(update_fields=["review", "reviewed_by", "reviewed_at"])
    audit.record(actor, "review", project=run.project, about=run, detail={"review": state})
    return run


def _name(pair: Pair, recipe: Recipe, project: Project) -> str:
    """The pair's and the recipe's name; with a number, from the second run that is called so."""
    stem = pair.name if recipe.name == pair.name else f"{pair.name} - {recipe.name}"
    stem = stem[:110]
    called_so = Q(name=stem) | Q(name__startswith=f"{stem} ")
    known = Run.objects.filter(called_so, project=project).count()
    return f"{stem} {known + 1}" if known else stem


def _same_project(project: Project, **parts: Owned | None) -> None:
    for field, part in parts.items():
        if part is not None and part.project_id != project.pk:
            raise BadInput(
                "launch.other_project",
                f"{part} belongs to another project.",
                remedy=f"Choose one of {project.name}.",
                field=field,
            )


def _locked(run: Run, actor: User, action: Action) -> Run:
    row = Run.objects.select_for_update().select_related("project").get(pk=run.pk)
    require(actor, action, row.project)
    return row


def _words(text: str) -> str:
    """What a comment says, without the space around it."""
    words = text.strip()
    if not words:
        raise BadInput(
            "comment.empty", "The comment is empty.", remedy="Write something.", field="text"
        )
    if len(words) > LONGEST_COMMENT:
        raise BadInput(
            "comment.too_long",
            f"The comment has {len(words):,} characters and at most {LONGEST_COMMENT:,} are kept.",
            remedy="Shorten it, or say it in several.",
            field="text",
        )
    return words


def _tags(tags: Sequence[str]) -> list[str]:
    cleaned = list(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    long = [tag for tag in cleaned if len(tag) > LONGEST_TAG]
    if long or len(cleaned) > MOST_TAGS:
        raise BadInput(
            "run.tags",
            f"{long[0][:60]!r} is too long." if long else f"{len(cleaned)} tags are too many.",
            remedy=f"Give at most {MOST_TAGS} tags of at most {LONGEST_TAG} characters.",
            field="tags",
        )
    return cleaned
