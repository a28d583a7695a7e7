"""A run's data as JSON for charts and scripts, and its files as downloads."""

from __future__ import annotations

from collections.abc import Container

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.utils.text import slugify
from django.views.decorators.http import require_GET

from opdcore.contract.metrics import METRICS, POSITION_METRICS
from webapp.models import Artifact, Run
from webapp.services import positions, run_files, series, traces
from webapp.views import downloads
from webapp.views.scope import visible

MOST_POINTS = 5000


@require_GET
def series_json(request: HttpRequest, public_id: str) -> HttpResponse:
    """Metric series as columns; `keys` by comma, `points` at most."""
    run = visible(Run.objects.all(), request, public_id)
    keys = _keys(request, METRICS)
    points = _number(request, "points", series.DEFAULT_POINTS, most=MOST_POINTS)
    if keys is None or points is None:
        return _bad("keys or points", "metric keys and a whole number")
    return _json(series.encode(series.read(run, keys, points=points)))


@require_GET
def positions_json(request: HttpRequest, public_id: str) -> HttpResponse:
    """Metrics by step and position chunk, one grid a stage."""
    run = visible(Run.objects.all(), request, public_id)
    keys = _keys(request, POSITION_METRICS)
    rows = _number(request, "rows", positions.DEFAULT_ROWS, most=MOST_POINTS)
    if keys is None or rows is None:
        return _bad("keys or rows", "metric keys that are kept by position, and a whole number")
    return _json(positions.encode(positions.read(run, keys, rows=rows)))


@require_GET
def trace_json(request: HttpRequest, public_id: str) -> HttpResponse:
    """The run's trace files; with `key` one file's rollouts, with `rollout` and `start` more of one."""
    run = visible(Run.objects.all(), request, public_id)
    if "key" not in request.GET:
        return _json(traces.encode_files(run))
    found = traces.published(run).filter(key=request.GET["key"]).last()
    if found is None:
        raise Http404("There is no such trace; it may not be published yet.")
    if "rollout" not in request.GET:
        return _json(traces.encode_brief(found))
    rollout, start = _place(request, "rollout"), _place(request, "start")
    if rollout is None or start is None:
        return _bad("rollout or start", "a whole number from 0")
    asked = "start" in request.GET
    body = (
        traces.encode_top(found, rollout, start) if asked else traces.encode_rollout(found, rollout)
    )
    if body is None:
        raise Http404("The trace holds nothing there.")
    return _json(body)


@require_GET
def artifact(request: HttpRequest, public_id: str, artifact_id: int) -> StreamingHttpResponse:
    """One file, in pieces."""
    kept = Artifact.objects.kept().visible_to(request.user).exclude(storage_key="")
    found = kept.filter(run__public_id=public_id, pk=artifact_id).first()
    if found is None:
        raise Http404("There is no such file that you may fetch.")
    name = found.key.rsplit("/", 1)[-1]
    answer = downloads.stream(request, run_files.pieces(found), name=name)
    answer["Content-Length"] = str(found.size_bytes)
    return answer


@require_GET
def output(request: HttpRequest, public_id: str) -> StreamingHttpResponse:
    """The trained student as one archive, which `from_pretrained` opens once it is unpacked."""
    run = visible(Run.objects.all(), request, public_id)
    files = run_files.output(run)
    if not files:
        raise Http404("This run has no output yet.")
    folder = f"{slugify(run.name) or 'student'}-{run.public_id}"
    return downloads.stream(request, run_files.archive(files, folder=folder), name=f"{folder}.zip")


def _keys(request: HttpRequest, known: Container[str]) -> list[str] | None:
    """The keys asked for, each once; None where one is unknown."""
    keys = list(dict.fromkeys(key for key in request.GET.get("keys", "").split(",") if key))
    return keys if all(key in known for key in keys) else None


def _number(request: HttpRequest, name: str, usual: int, *, most: int) -> int | None:
    text = request.GET.get(name, str(usual))
    return min(int(text), most) if text.isdecimal() and int(text) > 0 else None


def _place(request: HttpRequest, name: str) -> int | None:
    text = request.GET.get(name, "0")
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _bad(field: str, wanted: str) -> HttpResponse:
    return JsonResponse({"error": f"{field} cannot be used: give {wanted}."}, status=400)


def _json(body: bytes) -> HttpResponse:
    return HttpResponse(body, content_type="application/json")
