"""Runs: listed, read, launched, cancelled, resumed, cloned; their series, events and artifacts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import F
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from ninja import Query, Router, Schema, Status
from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.job import ResourceRole
from opdcore.contract.metrics import METRICS
from webapp.api.references import REFUSALS, WRITE_REFUSALS, Ref, VersionRef
from webapp.api.scope import actor, chosen, project, visible
from webapp.models import Artifact, ModelEndpoint, Pair, PromptSet, Recipe, RegisteredModel, Run
from webapp.models.runs import RunQuerySet
from webapp.services import live, replays, run_files, run_list, runs, scores, series
from webapp.services.asked_parts import AskedParts
from webapp.services.predictions import Prediction
from webapp.services.resources import DeviceNeed
from webapp.views import downloads

router = Router(tags=["Runs"])

MOST_POINTS = 5000


class RunRow(Schema):
    """A run as the list shows it; numbers are its latest ones, null while they are not known."""

    public_id: str
    project: str = Field(description="public_id of its project.")
    name: str
    status: str = Field(description="queued, running, paused, succeeded, failed or cancelled.")
    attempt: int
    pair: Ref
    recipe: VersionRef
    parent: str | None = Field(description="public_id of the run that it was made from.")
    relation: str | None = Field(description="clone, resume, rescue, control or replay.")
    tags: list[str]
    review: str
    created_by: str | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    step: int
    steps_total: int
    stage_index: int | None
    last_seq: int = Field(description="seq of its newest event.")
    reward: float | None = Field(description="Token reward, mean over tokens.")
    overlap_ratio: float | None
    loss: float | None
    accuracy: float | None = Field(description="On the held-out prompts.")
    gap_recovery: float | None
    seconds: float
    device_seconds: float
    student_tokens: int
    teacher_tokens: int
    error: ErrorInfo | None
    outcome: dict[str, Any] | None = Field(description="The contract's Outcome.")
    health: dict[str, Any] | None = Field(description="The latest verdict.")

    @staticmethod
    def resolve_project(run: Run) -> str:
        return run.project.public_id

    @staticmethod
    def resolve_parent(run: Run) -> str | None:
        return run.parent_public_id  # type: ignore[attr-defined,no-any-return]

    @staticmethod
    def resolve_created_by(run: Run) -> str | None:
        return run.created_by.get_username() if run.created_by else None


class RunReply(RunRow):
    """A run with everything that it was made of."""

    host: str
    train_set: VersionRef
    held_out_set: VersionRef | None
    teacher_content_set: VersionRef | None
    outside_set: VersionRef | None
    writer: Ref | None
    judge: Ref | None
    resources: dict[str, Any]
    notes: str
    progress: dict[str, Any] | None
    predicted: Prediction | None = Field(description="What it was taken to need at the launch.")
    peak_memory_bytes: int | None = Field(description="The most that it took, as measured.")
    disk_bytes: int | None = Field(description="The most that its folder held, as measured.")
    snapshot: dict[str, Any] = Field(description="Pair, prompt sets, recipe and code as launched.")


class RunPage(Schema):
    items: list[RunRow]
    next: str | None = Field(description="The `after` of the following page; null on the last.")


class RunFilters(Schema):
    """What the run list can be narrowed and sorted by."""

    project: str | None = Field(None, description="public_id of a project; all of yours if absent.")
    text: str = Field("", max_length=120, description="Part of a name of run, pair or recipe.")
    status: str = Field("", description="A run's status.")
    outcome: str = Field("", description="An outcome's code, such as success.")
    pair: str = Field("", description="public_id of a pair.")
    tag: str = Field("", max_length=120)
    sort: str = Field(run_list.NEWEST, description="A column; a - before it sorts downwards.")
    after: str = Field("", description="public_id of the last run of the page before.")


class LaunchBody(Document):
    """What a run is to be made of; all of one project."""

    pair: str = Field(description="public_id of a pair.")
    recipe: str = Field(description="public_id of a recipe.")
    train: str = Field(description="public_id of the prompt set to learn from.")
    held_out: str | None = Field(None, description="public_id of the prompt set to measure on.")
    teacher_content: str | None = Field(
        None,
        description="public_id of prompts from the teacher's post-training, where the recipe selects "
        "by teacher_content.",
    )
    outside: str | None = Field(
        None, description="public_id of prompts to mix in there; absent: the training prompts."
    )
    writer: str | None = Field(
        None,
        description="public_id of the model that writes what a cold start of source writer learns.",
    )
    judge: str | None = Field(
        None, description="public_id of the endpoint that the verifier judge asks."
    )
    name: str = Field("", max_length=120, description="Empty: named after pair and recipe.")
    keep_scores: bool = Field(
        default=False,
        description="Keep what the teachers say on the worker, so that the run can be replayed without them.",
    )
    resources: dict[ResourceRole, DeviceNeed] = Field(
        default_factory=dict,
        description="Devices by role; absent: one to train on, which all share.",
    )


class CloneBody(Document):
    name: str = Field("", max_length=120, description="Empty: the run's name and `again`.")


class SeriesQuery(Schema):
    keys: str = Field("", description="Metrics, separated by commas; empty: all that it has.")
    points: int = Field(
        series.DEFAULT_POINTS,
        ge=1,
        le=MOST_POINTS,
        description="At most so many of each metric.",
    )


class EventsQuery(Schema):
    after: int = Field(0, ge=0, description="Only events of a higher seq.")


class StageReply(Schema):
    index: int
    kind: str
    offset: int = Field(description="Steps of the stages before it.")
    steps: int


class ColumnsReply(Schema):
    """One series as columns; a bucket holds one point or more, never an average."""

    x: list[int] = Field(description="The stage's offset plus the bucket's last step.")
    last: list[float | None]
    min: list[float | None]
    max: list[float | None]
    nonfinite: list[int] = Field(description="Points of the bucket that were NaN or infinite.")


class SeriesReply(Schema):
    seq: int
    series: dict[str, ColumnsReply]
    stages: list[StageReply]


class EventReply(Schema):
    seq: int
    attempt: int
    line: int
    stage_index: int | None
    step: int | None
    at: datetime
    kind: str
    payload: dict[str, Any] = Field(description="As the contract's event of this kind.")


class EventsReply(Schema):
    events: list[EventReply] = Field(description="At most 500, or about 1 MiB.")
    seq: int = Field(description="The `after` of the next call; unchanged where nothing is new.")
    status: str


class ArtifactReply(Schema):
    id: int = Field(description="What its download's address ends in.")
    attempt: int
    kind: str
    key: str
    sha256: str
    size_bytes: int
    created_at: datetime


@router.get("", response={200: RunPage, **REFUSALS}, summary="List runs")
def list_runs(request: HttpRequest, query: Query[RunFilters]) -> dict[str, object]:
    """At most 50 runs a page, newest first where `sort` says nothing else."""
    _sound(query)
    seen = rows().visible_to(actor(request))
    if query.project:
        seen = seen.filter(project=project(request, query.project))
    page = run_list.read(seen, run_list.Query.parse(query.model_dump(exclude={"project"})))
    return {"items": page.rows, "next": page.rows[-1].public_id if page.older else None}


@router.post("", response={201: RunReply, **WRITE_REFUSALS}, summary="Launch a run")
def launch_run(request: HttpRequest, body: LaunchBody) -> Status[Run]:
    """Queues a run; a refusal lists every reason at once, and nothing is queued then."""
    pair = chosen(Pair.objects.with_models(), request, body.pair, field="pair")
    sets = PromptSet.objects.present()
    run = runs.launch(
        actor=actor(request),
        project=pair.project,
        pair=pair,
        recipe=chosen(Recipe.objects.all(), request, body.recipe, field="recipe"),
        train=chosen(sets, request, body.train, field="train"),
        held_out=_set(request, body, "held_out"),
        asked=AskedParts(
            teacher_content=_set(request, body, "teacher_content"),
            outside=_set(request, body, "outside"),
            writer=_writer(request, body),
            judge=_judge(request, body),
        ),
        name=body.name,
        resources=body.model_dump(mode="json")["resources"],
        kept_scores=scores.KEEP if body.keep_scores else None,
    )
    return Status(201, again(run))


@router.get("/{public_id}", response={200: RunReply, **REFUSALS}, summary="Read a run")
def read_run(request: HttpRequest, public_id: str) -> Run:
    """The run with its snapshot."""
    return visible(rows(), request, public_id)


@router.post("/{public_id}/cancel", response={200: RunReply, **WRITE_REFUSALS}, summary="Cancel")
def cancel_run(request: HttpRequest, public_id: str) -> Run:
    """A queued run ends at once; a running one stops after its step, and keeps a checkpoint."""
    return again(runs.cancel(visible(rows(), request, public_id), actor=actor(request)))


@router.post("/{public_id}/resume", response={200: RunReply, **WRITE_REFUSALS}, summary="Resume")
def resume_run(request: HttpRequest, public_id: str) -> Run:
    """Queues a failed, cancelled or paused run again; it goes on from its last checkpoint."""
    return again(runs.resume(visible(rows(), request, public_id), actor=actor(request)))


@router.post("/{public_id}/clone", response={201: RunReply, **WRITE_REFUSALS}, summary="Clone")
def clone_run(request: HttpRequest, public_id: str, body: CloneBody) -> Status[Run]:
    """Launches the same pair, recipe and prompt sets again."""
    run = visible(rows(), request, public_id)
    return Status(201, again(runs.clone(run, actor=actor(request), name=body.name)))


@router.post("/{public_id}/replay", response={201: RunReply, **WRITE_REFUSALS}, summary="Replay")
def replay_run(request: HttpRequest, public_id: str, body: CloneBody) -> Status[Run]:
    """Launches the same without its teacher, from the scores that the run has kept."""
    run = visible(rows(), request, public_id)
    return Status(201, again(replays.replay(run, actor=actor(request), name=body.name)))


@router.get("/{public_id}/series", response={200: SeriesReply, **REFUSALS}, summary="Metric series")
def read_series(request: HttpRequest, public_id: str, query: Query[SeriesQuery]) -> HttpResponse:
    """Exact in extremes and in counts of non-finite values, however few points are asked for."""
    run = visible(Run.objects.all(), request, public_id)
    wanted = _metrics(query.keys) or series.keys(run)
    return _json(series.encode(series.read(run, wanted, points=query.points)))


@router.get("/{public_id}/events", response={200: EventsReply, **REFUSALS}, summary="Events")
def read_events(request: HttpRequest, public_id: str, query: Query[EventsQuery]) -> HttpResponse:
    """The next events as the run's socket sends them; call again with `seq` until none comes."""
    page = live.read(actor(request), public_id, after=query.after)
    if page is None:
        raise Http404(f"There is no {public_id} that you may see.")
    return _json(page.text)


@router.get(
    "/{public_id}/artifacts", response={200: list[ArtifactReply], **REFUSALS}, summary="Artifacts"
)
def list_artifacts(request: HttpRequest, public_id: str) -> list[Artifact]:
    """Published files that are still kept: checkpoints, traces, log and output."""
    return run_files.kept(visible(Run.objects.all(), request, public_id))


@router.get("/{public_id}/artifacts/{artifact_id}", response=REFUSALS, summary="Download a file")
def read_artifact(request: HttpRequest, public_id: str, artifact_id: int) -> StreamingHttpResponse:
    """The file's bytes."""
    kept = Artifact.objects.kept().visible_to(actor(request)).exclude(storage_key="")
    found = kept.filter(run__public_id=public_id, pk=artifact_id).first()
    if found is None:
        raise Http404("There is no such file that you may fetch.")
    return downloads.stream(request, run_files.pieces(found), name=found.key.rsplit("/", 1)[-1])


def _set(request: HttpRequest, body: LaunchBody, role: str) -> PromptSet | None:
    """The prompt set that the body names for a role."""
    named = getattr(body, role)
    return chosen(PromptSet.objects.present(), request, named, field=role) if named else None


def _writer(request: HttpRequest, body: LaunchBody) -> RegisteredModel | None:
    models = RegisteredModel.objects.all()
    return chosen(models, request, body.writer, field="writer") if body.writer else None


def _judge(request: HttpRequest, body: LaunchBody) -> ModelEndpoint | None:
    endpoints = ModelEndpoint.objects.all()
    return chosen(endpoints, request, body.judge, field="judge") if body.judge else None


def rows() -> RunQuerySet:
    """Runs with all that a reply names."""
    joined = ("project", "pair", "recipe", "created_by", "writer", "judge")
    sets = ("train_set", "held_out_set", "teacher_content_set", "outside_set")
    found = Run.objects.select_related(*joined, *sets)
    return found.annotate(parent_public_id=F("parent__public_id"))


def again(run: Run) -> Run:
    """The run as it stands after a write, with all that a reply names."""
    return rows().get(pk=run.pk)


def _sound(filters: RunFilters) -> None:
    """The page takes an unknown filter as not given; a script is told."""
    choices = {
        "status": Run.Status.values,
        "outcome": list(run_list.OUTCOMES),
        "sort": [*run_list.COLUMNS, *(f"-{key}" for key in run_list.COLUMNS)],
    }
    for field, allowed in choices.items():
        value = getattr(filters, field)
        if value and value not in allowed:
            raise BadInput(
                "api.no_such_choice",
                f"{value!r} is no choice here.",
                remedy=f"Choose one of {', '.join(allowed)}.",
                field=field,
            )


def _metrics(keys: str) -> list[str]:
    asked = [key for key in keys.split(",") if key]
    unknown = [key for key in asked if key not in METRICS]
    if unknown:
        raise BadInput(
            "api.no_such_metric",
            f"{unknown[0]!r} is no metric.",
            remedy="Give keys that the run's series have, such as overlap_ratio.",
            field="keys",
        )
    return asked


def _json(body: bytes | str) -> HttpResponse:
    return HttpResponse(body, content_type="application/json")
