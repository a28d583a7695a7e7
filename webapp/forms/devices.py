"""What a run may ask of the devices, as fields: one choice for most, a number by role for the rest.

Whether the engine can use what is asked for is decided by the services.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from django import forms

from opdcore.contract.job import ResourceRole
from webapp.models import Device
from webapp.services.resources import GIB, ROLES

LABELS: dict[ResourceRole, tuple[str, str]] = {
    "train": ("Training", "Empty: one."),
    "sample": ("Sampling", "Empty: on the training devices, or a server."),
    "teacher": ("Teacher", "Empty: on the training devices, or a server."),
}
SERVED = [("", "In the job's process"), ("own", "A vLLM server that the run starts")]
DEVICE_FIELDS = ("device", "threads", "sample_served", "teacher_served")
# Shown only where there is something to divide.
ROLE_FIELDS = tuple(f"{role}_{what}" for role in ROLES for what in ("devices", "memory"))


class RoleFields(NamedTuple):
    """The two fields of one role."""

    label: str
    devices: forms.BoundField
    memory: forms.BoundField


class DevicesForm(forms.Form):
    """Devices by role; empty throughout, it asks for any one device that all roles share."""

    device = forms.ChoiceField(required=False, help_text="What the run waits for.")
    threads = forms.IntegerField(
        required=False, min_value=1, max_value=1024, help_text="Empty: all that the worker grants."
    )

    sample_served = forms.ChoiceField(
        required=False,
        label="Sampling",
        choices=SERVED,
        help_text="Who writes the student's responses. A server is given its weights at every step.",
    )
    teacher_served = forms.ChoiceField(
        required=False,
        label="Teacher",
        choices=SERVED,
        help_text="Who scores them. Runs with the same teacher share its server. On a GPU it tells the "
        "student's top k too; elsewhere its own alone: support teacher, or form sampled.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (Django's)
        super().__init__(*args, **kwargs)
        for role in ROLES:
            label, help_text = LABELS[role]
            count = forms.IntegerField(
                required=False,
                min_value=1,
                max_value=64,
                label=f"{label}: devices",
                help_text=help_text,
            )
            memory = forms.FloatField(
                required=False,
                min_value=0.1,
                max_value=4096,
                label=f"{label}: memory of each",
                help_text="At least; empty: any.",
            )
            memory.unit = "GiB"  # type: ignore[attr-defined]
            self.fields |= {f"{role}_devices": count, f"{role}_memory": memory}
        device = self.fields["device"]
        device.choices = list(_kinds())  # type: ignore[attr-defined]

    @property
    def roles(self) -> list[RoleFields]:
        """The fields of each role."""
        return [
            RoleFields(LABELS[role][0], self[f"{role}_devices"], self[f"{role}_memory"])
            for role in ROLES
        ]

    @property
    def offers_roles(self) -> bool:
        """Whether there is anything to divide, or somebody divided it already."""
        asked = any(self[name].value() for name in ROLE_FIELDS)
        return asked or Device.objects.filter(kind="cuda").exists() or Device.objects.count() > 1

    @property
    def divides_roles(self) -> bool:
        """Whether a role has a number or a least memory of its own."""
        return any(self[name].value() for name in ROLE_FIELDS)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        for role in ROLES[1:]:
            if cleaned.get(f"{role}_memory") and not cleaned.get(f"{role}_devices"):
                self.add_error(
                    f"{role}_devices", "Say how many devices have this memory, such as 1."
                )
        return cleaned

    def resources(self) -> dict[str, Any]:
        """What the run asks for, by role; only of a valid form."""
        asked = {role: self._need(role) for role in ROLES}
        if self.cleaned_data["threads"]:
            asked["train"] = {**asked["train"], "threads": self.cleaned_data["threads"]}
        return {role: need for role, need in asked.items() if need}

    def _need(self, role: ResourceRole) -> dict[str, Any]:
        count, memory = (self.cleaned_data[f"{role}_{what}"] for what in ("devices", "memory"))
        kind = self.cleaned_data["device"] if role == "train" else ""
        found = {"kind": kind, "count": count, "memory_bytes": memory and round(memory * GIB)}
        asked = {name: value for name, value in found.items() if value}
        served = self.cleaned_data.get(f"{role}_served")
        if served:
            # Without devices of its own it shares those that train.
            asked = {"count": 0, **asked, "served": True}
            asked |= {} if served == "own" else {"endpoint": served}
        return asked


def _kinds() -> Iterator[tuple[str, str]]:
    yield "", "Any free device"
    kinds = set(Device.objects.values_list("kind", flat=True))
    if "cpu" in kinds:
        yield "cpu", "The processor"
    if "cuda" in kinds:
        yield "cuda", "GPU"
