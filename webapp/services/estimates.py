"""What a launch will take, before it is made, beside the device that it is to fit on.

Times rest on an earlier run of the same pair where there is one, else on what such a device usually
sustains; memory and disk on the models' shapes. It knows no form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.estimate import Estimate
from opdcore.inspection import ModelCard
from opdcore.planning import Setting, answered_tokens, forecast
from webapp.models import Device, Pair, Run
from webapp.services.resources import parsed

# Until a run's own vLLM servers answer; they start together. Seen: 45 to 90 on two cores.
SERVER_START_SECONDS = 60.0


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
    tags: Mapping[tuple[str, ...], int] | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Needs | None:
    """The needs of a run; None where the models' shapes are not known before the launch.

    `tags` counts the prompts by their tags, which say which teachers score them.
    """
    device = _device(resources or {})
    kind = device.kind if device else "cpu"
    setting = _setting(pair, kind=kind, longest_prompt=longest_prompt)
    if setting is None:
        return None
    setting = replace(setting, scored_by=_scored_by(pair, tags or {}), **_places(resources or {}))
    found = forecast(recipe, setting)
    if found is None:
        return None
    pace = _pace(pair)
    seconds = found.seconds + SERVER_START_SECONDS * _starts_servers(resources or {})
    return Needs(
        memory=_without_endpoints(found.memory, resources or {}),
        disk=found.disk,
        seconds=answered_tokens(recipe) * pace.seconds_per_token if pace else seconds,
        device=device.name if device else "a processor",
        device_memory_bytes=device.memory_bytes if device else None,
        basis=f"at the pace of {pace.run.name}" if pace else "from the models' sizes; rough",
    )


def _starts_servers(resources: Mapping[str, Any]) -> bool:
    return any(need.served and not need.endpoint for need in parsed(resources).values())


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


def _places(resources: Mapping[str, Any]) -> dict[str, Any]:
    """How many devices train, and what lies elsewhere; a server's share is never the trainer's own."""
    asked = parsed(resources)
    train, sample, teacher = (asked.get(role) for role in ("train", "sample", "teacher"))
    return {
        "processes": train.count if train else 1,
        "sampler_here": not (sample and sample.served),
        "teachers_here": teacher is None,
    }


def _without_endpoints(memory: Estimate, resources: Mapping[str, Any]) -> Estimate:
    """What lies at an endpoint takes nothing here."""
    there = {role for role, need in parsed(resources).items() if need.endpoint}
    return replace(memory, apart=tuple(one for one in memory.apart if one.role not in there))


def _scored_by(pair: Pair, tags: Mapping[tuple[str, ...], int]) -> float | None:
    """Teachers that score a prompt, in the mean over the prompts; None where these are not known."""
    wanted = [set(teacher.teaching.tags) for teacher in pair.teachers.all()]
    prompts = sum(tags.values())
    if not prompts:
        return None
    scores = sum(
        count * sum(not its or not its.isdisjoint(of) for its in wanted)
        for of, count in tags.items()
    )
    return scores / prompts


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
