"""The page of a run and its parts, each of which htmx can ask for again.

Everything comes from the database, so a reload shows what was shown before it.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import yaml
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from opdcore.contract import needs
from opdcore.contract.metrics import METRICS
from webapp.forms.knobs import label_of
from webapp.models import Run
from webapp.permissions import allows
from webapp.services import (
    diagnosis_report,
    health,
    machines,
    predictions,
    run_files,
    run_report,
    scores,
    selections,
    series,
    serving,
    traces,
)
from webapp.services.resources import needs as machine_needs
from webapp.services.resources import words
from webapp.services.run_report import Evaluations
from webapp.views.run_charts import CURVE_KEYS, HEAT_KEYS, groups_of, rung, uncharted
from webapp.views.scope import actor, visible

NO_CONTENT = 204


@require_GET
def page(request: HttpRequest, public_id: str) -> HttpResponse:
    """The whole page; its charts, samples and logs fetch their own data."""
    run = _run(request, public_id)
    context = _status(request, run) | _health(run) | _diagnosis(run)
    kinds = {span.kind for span in series.stages(run)}
    context |= {
        "groups": groups_of(kinds),
        "distills": "distill" in kinds,
        "heat_metrics": [
            {"key": key, "label": METRICS[key].label, "unit": METRICS[key].unit}
            for key in HEAT_KEYS
        ],
        "curve_keys": ",".join(CURVE_KEYS),
        "steps_by_stage": ",".join(str(span.steps) for span in series.stages(run)),
        "selects": "select_prompts" in kinds,
        "comments": run.comments.select_related("author"),
        "review_states": Run.Review.choices,
    }
    return render(request, "runs/page.html", context)


@require_GET
def status(request: HttpRequest, public_id: str) -> HttpResponse:
    """Badges, actions, stages and result; nothing where the page shows them already."""
    run = _run(request, public_id)
    if request.GET.get("seen") == _fingerprint(run, machines.reason(run)):
        return HttpResponse(status=NO_CONTENT)
    return render(request, "runs/_status_update.html", _status(request, run))


@require_GET
def figures(request: HttpRequest, public_id: str) -> HttpResponse:
    """The headline numbers."""
    run = _run(request, public_id)
    distills = any(span.kind == "distill" for span in series.stages(run))
    return render(request, "runs/_figures.html", {"run": run, "distills": distills})


@require_GET
def health_part(request: HttpRequest, public_id: str) -> HttpResponse:
    """The monitor's latest verdict with its evidence, and how it changed."""
    run = _run(request, public_id)
    return render(request, "runs/_health.html", _health(run) | {"is_fragment": True})


@require_GET
def diagnosis_part(request: HttpRequest, public_id: str) -> HttpResponse:
    """What a diagnose stage found."""
    run = _run(request, public_id)
    return render(request, "runs/_diagnosis.html", _diagnosis(run))


@require_GET
def samples(request: HttpRequest, public_id: str) -> HttpResponse:
    """Traced rollouts, token by token."""
    run = _run(request, public_id)
    return render(request, "runs/_samples.html", {"run": run, "files": traces.files(run)})


@require_GET
def prompts(request: HttpRequest, public_id: str) -> HttpResponse:
    """Which prompts were selected, which not, and why; with `inner` without the part around it."""
    run = _run(request, public_id)
    told = selections.told(run)
    keys = [one.key for one in told]
    asked = request.GET.get("selection")
    key = asked if asked in keys else next(reversed(keys), None)
    page = request.GET.get("page", "1")
    shown = key and selections.show(
        run,
        key,
        reason=request.GET.get("reason", ""),
        page=int(page) if page.isdecimal() and len(page) < 8 else 1,
    )
    context = {"run": run, "told": told, "key": key, "shown": shown}
    name = "runs/_prompts.html" if "inner" in request.GET else "runs/_prompts_part.html"
    return render(request, name, context)


@require_GET
def log(request: HttpRequest, public_id: str) -> HttpResponse:
    """What happened, line by line, and the end of what the process itself wrote."""
    run = _run(request, public_id)
    context = {"run": run, "lines": run_report.log(run), "tail": run_files.log_tail(run)}
    return render(request, "runs/_log.html", context)


@require_GET
def artifacts(request: HttpRequest, public_id: str) -> HttpResponse:
    """Files that can be downloaded."""
    run = _run(request, public_id)
    files = run_files.kept(run)
    context = {
        "run": run,
        "files": files,
        "groups": run_files.groups(files),
        "has_output": any(file.kind == "output" for file in files),
        "models": run.output_models.all(),
        "may_edit": allows(request.user, "edit", run.project),
    }
    return render(request, "runs/_artifacts.html", context)


@require_GET
def details(request: HttpRequest, public_id: str) -> HttpResponse:
    """What the run is made of, where it comes from and what it took."""
    run = _run(request, public_id)
    document = run.snapshot["recipe"]["document"]
    context = {
        "run": run,
        "snapshot": run.snapshot,
        "asked": [
            (label_of(role), run.snapshot["prompt_sets"][role])
            for role in needs.PROMPT_ROLES
            if role in run.snapshot["prompt_sets"]
        ],
        "is_replay": scores.is_replay(scores.of_run(run)),
        "kept_scores": scores.kept(run),
        "recipe_yaml": yaml.safe_dump(document, sort_keys=False, allow_unicode=True),
        "compared": predictions.compared(run),
        "prediction": predictions.of(run),
        "versions": run_report.versions(run),
        "devices_asked": words(machine_needs(run.resources)),
        "served": serving.places(run),
        "sharing": serving.sharing(run, actor(request)),
        "leases": run.leases.select_related("device").order_by("role", "device"),
        "children": run.children.only("public_id", "name", "status", "relation"),
    }
    return render(request, "runs/_details.html", context)


def _run(request: HttpRequest, public_id: str) -> Run:
    related = ("project", "pair", "recipe", "train_set", "held_out_set", "parent")
    people = ("created_by", "reviewed_by")
    return visible(Run.objects.select_related(*related, *people), request, public_id)


def _status(request: HttpRequest, run: Run) -> dict[str, Any]:
    evaluations = run_report.evaluations(run) if run.outcome else None
    waits = machines.reason(run)
    return {
        "run": run,
        "fingerprint": _fingerprint(run, waits),
        "stages": run_report.stages(run),
        "waits": waits,
        "only_diagnoses": {span.kind for span in series.stages(run)} == {"diagnose"},
        "ladder": _ladder(evaluations) if evaluations else [],
        "has_output": run.artifacts.filter(kind="output", dropped=False).exists(),
        "may_replay": scores.may_replay(run),
        "may_launch": allows(request.user, "launch", run.project),
        "may_edit": allows(request.user, "edit", run.project),
        "may_comment": allows(request.user, "comment", run.project),
        "may_review": allows(request.user, "review", run.project),
    }


def _health(run: Run) -> dict[str, Any]:
    found = health.of(run)
    evidence = [row.key for row in found.said.rows] if found else []
    trains = any(span.steps for span in series.stages(run))
    return {"run": run, "health": found, "trains": trains, "uncharted": uncharted(evidence)}


def _diagnosis(run: Run) -> dict[str, Any]:
    stages = series.stages(run)
    return {
        "run": run,
        "report": diagnosis_report.of(run),
        "diagnoses": any(span.kind == "diagnose" for span in stages),
    }


def _fingerprint(run: Run, waits: str | None) -> str:
    """Changes whenever the status part of the page would."""
    health = run.health["code"] if run.health else ""
    outcome = run.outcome["code"] if run.outcome else ""
    stopping = "stopping" if run.is_stopping else ""
    waiting = f"{crc32(waits.encode()):x}" if waits else ""
    state = (run.status, waiting, stopping, run.attempt, run.stage_index)
    parts = (*state, health, outcome, run.review)
    return "-".join(str(part) for part in parts if part not in ("", None))


def _ladder(found: Evaluations) -> list[dict[str, Any]]:
    """The accuracies as rows on one scale from 0 to 100."""
    named = (("Before", found.before), ("After", found.last), ("Teacher", found.teacher))
    return [rung(name, measured) for name, measured in named if measured is not None]
