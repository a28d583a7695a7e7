"""Rescues: a failing run's plan, the child launched from it, and the proof whether that worked."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Schema, Status
from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.rescue import RescuePlan
from opdcore.rescue import Proof
from webapp.api.references import REFUSALS, WRITE_REFUSALS
from webapp.api.runs import RunReply, again
from webapp.api.scope import actor, visible
from webapp.models import Run
from webapp.services import proofs, rescues

router = Router(tags=["Rescues"])


class RescueBody(Document):
    """How a plan is accepted."""

    recipe: RecipeDocument | None = Field(
        None, description="The plan's recipe as you changed it; null: as it is planned."
    )
    control: bool = Field(
        default=False,
        description="Whether the run's own recipe is continued beside it for as many steps.",
    )


class MeasuredReply(Schema):
    """A side's accuracy on the held-out prompts with its 95 % bounds, and the step it is of."""

    value: float
    low: float | None
    high: float | None
    step: int | None


class ArmReply(Schema):
    """One side of the comparison; what was not measured is null."""

    name: str = Field(description="parent, control or rescue.")
    run: str = Field(description="public_id.")
    status: str
    before: MeasuredReply | None
    last: MeasuredReply | None
    teacher: MeasuredReply | None
    recovery: float | None = Field(description="Share of the gap closed since all arms began.")
    device_seconds: float

    @staticmethod
    def resolve_run(arm: proofs.Arm) -> str:
        return arm.run.public_id

    @staticmethod
    def resolve_status(arm: proofs.Arm) -> str:
        return arm.run.status

    @staticmethod
    def resolve_device_seconds(arm: proofs.Arm) -> float:
        return arm.run.device_seconds


class ProofReply(Schema):
    proof: Proof | None = Field(description="null until the rescue has ended with an outcome.")
    arms: list[ArmReply]


@router.get("/{public_id}/rescue", response={200: RescuePlan, **REFUSALS}, summary="Read a plan")
def read_plan(request: HttpRequest, public_id: str) -> RescuePlan:
    """The answer to what was said against the run; `recipe` is null where training does not help."""
    return rescues.plan_of(visible(Run.objects.all(), request, public_id))


@router.post("/{public_id}/rescue", response={201: RunReply, **WRITE_REFUSALS}, summary="Rescue")
def rescue_run(request: HttpRequest, public_id: str, body: RescueBody) -> Status[Run]:
    """Launches the plan as a child of the run, which is never changed."""
    run = visible(Run.objects.all(), request, public_id)
    child = rescues.accept(run, actor=actor(request), document=body.recipe, control=body.control)
    return Status(201, again(child))


@router.get("/{public_id}/proof", response={200: ProofReply, **REFUSALS}, summary="Read a proof")
def read_proof(request: HttpRequest, public_id: str) -> dict[str, Any]:
    """A rescue beside its parent and, where it was asked for, the control arm."""
    rescued = Run.objects.filter(relation=Run.Relation.RESCUE, parent__isnull=False)
    child = visible(rescued, request, public_id)
    return {"proof": child.proof, "arms": proofs.arms(child)}
