"""What a launch will take, before it is made, beside the device that it is to fit on.

Times rest on an earlier run of the same pair where there is one, else on what such a device usually
sustains; memory on the models' shapes, corrected by what such a run was measured to take. It knows no form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.estimate import Estimate
from opdcore.inspection import ModelCard
from opdcore.planning import Setting, answered_tokens, forecast
from webapp.models import Device, Pair, Run
from webapp.services.resources import parsed


@dataclass(frozen=True, slots=True)
class Needs:
    """An estimate beside what it is compared with; `basis` says where its times come from."""

    memory: Estimate
    disk: Estimate
    seconds: float
    device: str
    device_memory_bytes: int | None
    basis: str

    @property
    def disk_bytes(self) -> int:
        return self.disk.disk_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None where the device's is not known."""
        if self.device_memory_bytes is None:
            return None
        return self.memory.peak_memory_bytes <= self.device_memory_bytes


@dataclass(frozen=True, slots=True)
class Pace:
    """What an earlier run of the pair showed."""

    run: Run
    seconds_per_token: float


def of(
    pair: Pair,
    recipe: RecipeDocument,
    *,
    longest_prompt: int | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Needs | None:
    """The needs of a run; None where the models' shapes are not known before the launch."""
    device = _device(resources or {})
    kind = device.kind if device else "cpu"
    setting = _setting(pair, kind=kind, longest_prompt=longest_prompt)
    found = forecast(recipe, setting) if setting else None
    if found is None:
        return None
    pace = _pace(pair)
    return Needs(
        memory=found.memory,
        disk=found.disk,
        seconds=answered_tokens(recipe) * pace.seconds_per_token if pace else found.seconds,
        device=device.name if device else "a processor",
        device_memory_bytes=device.memory_bytes if device else None,
        basis=f"at the pace of {pace.run.name}" if pace else "from the models' sizes; rough",
    )


def _device(resources: Mapping[str, Any]) -> Device | None:
    """The largest device of the kind that the run asks for, which is the best where it names none."""
    asked = parsed(resources).get("train")
    devices = Device.objects.order_by("-memory_bytes")
    if asked is not None and asked.kind is not None:
        devices = devices.filter(kind=asked.kind)
    return devices.first()


def _setting(pair: Pair, *, kind: str, longest_prompt: int | None) -> Setting | None:
    cards = [pair.student.card, *(teacher.model.card for teacher in pair.teachers.all())]
    if None in cards:
        return None
    student, *teachers = (ModelCard.model_validate(card) for card in cards)
    report = pair.token_map_report
    shared = report["shared_vocabulary"] if report else student.vocabulary
    return Setting(student, teachers, shared, kind=kind, longest_prompt=longest_prompt)


def _pace(pair: Pair) -> Pace | None:
    """Seconds per expected token of the pair's last finished run, evaluations included."""
    run = (
        Run.objects.filter(pair=pair, status="succeeded", seconds__gt=0)
        .select_related("recipe")
        .order_by("-finished_at")
        .first()
    )
    if run is None:
        return None
    tokens = answered_tokens(run.recipe.contract)
    return Pace(run, run.seconds / tokens) if tokens else None


def queue_length() -> int:
    """How many runs wait for a device before a new one."""
    return Run.objects.filter(status=Run.Status.QUEUED).count()
