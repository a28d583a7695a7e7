"""The proof of a rescue: its arms side by side, on one axis and in one table."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from opdcore.contract.metrics import METRICS
from webapp.models import Run
from webapp.services import proofs
from webapp.services.proofs import Arm
from webapp.views.run_charts import Chart, rung
from webapp.views.scope import visible

POINTS = 600
# What the arms are compared by, one chart each.
COMPARED = (
    Chart("Accuracy on held-out prompts", "accuracy", "", fixed="0,1"),
    Chart("Top-k overlap", "overlap_ratio", "", fixed="0,1"),
    Chart("Effective overlap", "effective_overlap", "", fixed="0,1"),
    Chart("Overlap-token advantage", "overlap_token_advantage", "", unit="nat"),
    Chart("Entropy gap", "entropy_gap", "", unit="nat"),
    Chart("Token reward", "token_reward", "", unit="nat"),
    Chart("Truncated", "truncation_rate", "", fixed="0,1"),
    Chart("Repeating", "repetition_rate", "", fixed="0,1"),
)


@require_GET
def proof(request: HttpRequest, public_id: str) -> HttpResponse:
    """The whole page."""
    run = _rescue(request, public_id)
    return render(request, "runs/proof.html", _context(run))


@require_GET
def arms_part(request: HttpRequest, public_id: str) -> HttpResponse:
    """The proof and the arms' figures, asked for again while one of them runs."""
    run = _rescue(request, public_id)
    return render(request, "runs/_proof_arms.html", _context(run))


@require_GET
def arms_json(request: HttpRequest, public_id: str) -> HttpResponse:
    """Series of all arms by `arm:metric`, their steps on one axis."""
    run = _rescue(request, public_id)
    keys = [key.partition(":")[2] for key in request.GET.get("keys", "").split(",") if key]
    if not keys or not set(keys) <= METRICS.keys():
        told = "keys cannot be used: give them as parent:overlap_ratio, with known metrics."
        return JsonResponse({"error": told}, status=400)
    body = proofs.overlay(proofs.arms(run), dict.fromkeys(keys), points=POINTS)
    return HttpResponse(body, content_type="application/json")


def _context(run: Run) -> dict[str, Any]:
    arms = proofs.arms(run)
    names = ",".join(arm.label.lower() for arm in arms)
    charts = [
        chart._replace(keys=",".join(f"{arm.name}:{chart.keys}" for arm in arms), names=names)
        for chart in COMPARED
    ]
    lineage = run.snapshot.get("lineage") or {}
    return {
        "run": run,
        "arms": arms,
        "charts": charts,
        "ladder": _ladder(arms),
        "plan": lineage.get("plan"),
        "edited": lineage.get("edited", []),
        "unattended": lineage.get("unattended", False),
        "active": any(not arm.run.has_ended for arm in arms),
        "control": next((arm.run for arm in arms if arm.name == "control"), None),
        "rate": proofs.rate(run.project, lineage["plan"]["verdict"]["code"]) if lineage else None,
    }


def _ladder(arms: list[Arm]) -> list[dict[str, Any]]:
    """Accuracies on one scale: where it began, each arm's newest, the teacher."""
    first = arms[0].before
    rungs = [rung("Before", first)] if first else []
    rungs += [rung(arm.label, arm.last) for arm in arms if arm.last is not None]
    teacher = next((arm.teacher for arm in reversed(arms) if arm.teacher), None)
    return [*rungs, rung("Teacher", teacher)] if teacher else rungs


def _rescue(request: HttpRequest, public_id: str) -> Run:
    related = ("project", "pair", "recipe", "train_set", "held_out_set", "parent")
    run = visible(Run.objects.select_related(*related), request, public_id)
    if run.relation != Run.Relation.RESCUE:
        raise Http404(f"{run.name} is no rescue, so it proves none.")
    return run
