"""What a run asks of the devices, by role: its document, in words, and as a job may be given it.

A run asks for kinds and numbers; which devices it gets, a worker decides when it claims the run. It
knows no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from pydantic import Field, ValidationInfo, field_validator

from opdcore.contract.document import Document
from opdcore.contract.job import Resource, ResourceRole
from webapp.services.allocation import RoleNeed

DeviceKind = Literal["cpu", "cuda"]
ROLES: tuple[ResourceRole, ...] = get_args(ResourceRole)
KINDS = {"cpu": "processor", "cuda": "GPU"}
PURPOSES: dict[ResourceRole, str] = {
    "train": "to train",
    "sample": "to sample",
    "teacher": "for the teacher",
}
GIB = 1 << 30


class DeviceNeed(Document):
    """What a run asks for in one role. A role that is left out shares the devices of `train`."""

    kind: DeviceKind | None = Field(
        default=None, description="cpu or cuda; null: the best kind that the worker has."
    )
    served: bool = Field(
        default=False,
        description="Of sample and teacher: in a vLLM server that the job starts, or at an endpoint.",
    )
    count: int = Field(
        default=1, ge=0, le=64, description="Devices of one host, all or none; 0: those of train."
    )
    memory_bytes: int | None = Field(
        default=None, ge=1, description="The least memory of each of them; null: any."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads; null: the worker's share."
    )
    memory_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Of a server that the job starts: the share of its GPU's memory that it takes; null: .9, "
        "or .4 of one that is trained on too.",
    )
    endpoint: str | None = Field(
        default=None,
        description="public_id of a registered endpoint; null: a server of the job's own.",
    )

    @field_validator("count")
    @classmethod
    def _some_unless_served(cls, count: int, told: ValidationInfo) -> int:
        if count == 0 and not told.data.get("served"):
            raise ValueError(
                "0 devices are for a role in a server that shares train's; give 1 or more"
            )
        return count


def parsed(asked: Mapping[str, Any]) -> dict[ResourceRole, DeviceNeed]:
    """The document of a run's resources, by role."""
    return {
        role: DeviceNeed.model_validate(asked[role])
        for role in ROLES
        if asked.get(role) is not None
    }


def needs(asked: Mapping[str, Any], *, teacher_server: str = "") -> tuple[RoleNeed, ...]:
    """What the allocator is asked for; a run that says nothing wants one device to train on.

    `teacher_server` is what the run can share with others that have the same teacher.
    """
    by_role: dict[ResourceRole, DeviceNeed] = {"train": DeviceNeed(), **parsed(asked)}
    return tuple(
        RoleNeed(
            role,
            need.count,
            need.kind or by_role["train"].kind,
            need.memory_bytes,
            teacher_server if role == "teacher" else "",
        )
        for role, need in by_role.items()
        if need.count
    )


def words(wanted: tuple[RoleNeed, ...]) -> str:
    """As a person says it, such as `2 GPUs of at least 40 GiB to train and a GPU for the teacher`."""
    if len(wanted) == 1:
        return _devices(wanted[0])
    told = [f"{_devices(one)} {PURPOSES[one.role]}" for one in wanted]
    return f"{', '.join(told[:-1])} and {told[-1]}"


def as_job(asked: Mapping[str, Any]) -> dict[ResourceRole, Resource]:
    """Resources of a job that is run by hand: devices numbered from 0 over the roles."""
    named: dict[ResourceRole, Resource] = {}
    number = 0
    for role, need in parsed(asked).items():
        if not need.count:
            continue
        on_gpus = need.kind == "cuda" or (need.kind is None and need.count > 1)
        gpus = tuple(f"cuda:{index}" for index in range(number, number + need.count))
        number += need.count if on_gpus else 0
        processors = () if need.kind is None else ("cpu",) * need.count
        named[role] = Resource(devices=gpus if on_gpus else processors, threads=need.threads)
    return named


def kind_words(kind: str | None) -> str:
    return KINDS.get(kind, kind) if kind else "device"


def _devices(one: RoleNeed) -> str:
    name = kind_words(one.kind)
    counted = f"a {name}" if one.count == 1 else f"{one.count} {name}s"
    if one.memory_bytes is None:
        return counted
    return f"{counted} of at least {one.memory_bytes / GIB:g} GiB"


def as_stored(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The document as a run's row keeps it; raises pydantic's ValidationError where it is unsound."""
    found = cast("dict[str, DeviceNeed]", parsed(asked))
    return {role: need.model_dump(mode="json") for role, need in found.items()}
