"""Forms from the contract: every knob's label, help, unit, bounds and choices are read, not written.

A form holds what was typed, as text; the contract alone decides whether it is sound, so that a form,
a YAML file and the API refuse the same things in the same words.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from django import forms
from pydantic.fields import FieldInfo

from opdcore.contract.document import Document, Level

GROUP_LABELS = {
    "goal": "Goal",
    "evaluation": "Evaluation",
    "length": "Length",
    "objective": "Objective",
    "sampling": "Sampling",
    "horizon": "Horizon",
    "optimizer": "Optimizer",
    "cadence": "Cadence",
    "probe": "Probe",
    "provenance": "Provenance",
    "selection": "Selection",
}


class NumbersInput(forms.TextInput):
    """One line for several numbers, whether they come as one text or one by one."""

    def value_from_datadict(self, data: Any, _files: Any, name: str) -> str:  # noqa: ANN401 (Django's)
        return ", ".join(data.getlist(name))


class NumbersField(forms.CharField):
    """Whole numbers with commas between them."""

    def prepare_value(self, value: Any) -> Any:  # noqa: ANN401 (text, or the numbers themselves)
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class KnobGroup:
    """Knobs that belong together: the basic ones, and two folds, the second for the laboratory alone."""

    label: str
    basic: tuple[forms.BoundField, ...]
    advanced: tuple[forms.BoundField, ...]
    experimental: tuple[forms.BoundField, ...]

    @property
    def folds(self) -> list[Fold]:
        """The folds that hold a knob."""
        named = (("Advanced", self.advanced), ("Only with a laboratory pair", self.experimental))
        return [Fold(title, fields) for title, fields in named if fields]


@dataclass(frozen=True, slots=True)
class Fold:
    """Knobs that fold away."""

    title: str
    fields: tuple[forms.BoundField, ...]

    @property
    def changed(self) -> int:
        """How many are not at their default, so that nothing hides in the fold."""
        return sum(_is_changed(field) for field in self.fields)

    @property
    def has_errors(self) -> bool:
        return any(field.errors for field in self.fields)


class KnobForm(forms.Form):
    """One document's knobs, under a dotted prefix such as `stages.0`."""

    use_required_attribute = False

    def __init__(
        self, document: type[Document], *, prefix: str, data: Mapping[str, Any] | None = None,
        initial: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(data, prefix=prefix, initial=initial)
        self.document = document
        for name, knob in knobs_of(document).items():
            self.fields[name] = field_of(name, knob)

    def add_prefix(self, field_name: str) -> str:
        return f"{self.prefix}.{field_name}" if self.prefix else field_name

    def content(self) -> dict[str, Any]:
        """What was typed, as the contract takes it: an emptied optional knob is None."""
        return {name: _typed(self[name]) for name in self.fields}

    def groups(self) -> list[KnobGroup]:
        """The knobs by group, in the contract's order."""
        knobs = knobs_of(self.document)
        names = dict.fromkeys(group_of(knob) for knob in knobs.values())
        return [KnobGroup(GROUP_LABELS[group], *self._by_level(knobs, group)) for group in names]

    def _by_level(
        self, knobs: dict[str, FieldInfo], group: str
    ) -> Iterator[tuple[forms.BoundField, ...]]:
        for level in get_args(Level):
            yield tuple(
                self[name]
                for name, knob in knobs.items()
                if group_of(knob) == group and _extra(knob)["level"] == level
            )


def knobs_of(document: type[Document]) -> dict[str, FieldInfo]:
    """The document's knobs by name; what only gives it its shape is declared without `knob`."""
    return {
        name: field
        for name, field in document.model_fields.items()
        if isinstance(field.json_schema_extra, dict)
    }


def group_of(knob: FieldInfo) -> str:
    """The group that the contract puts the knob into."""
    return str(_extra(knob)["group"])


def field_of(name: str, knob: FieldInfo) -> forms.Field:
    """The form field of a knob, with its unit and bounds for the template."""
    field = _plain_field(knob)
    field.label = label_of(name)
    field.help_text = knob.description or ""
    field.initial = knob.get_default(call_default_factory=True, validated_data={})
    field.unit = _extra(knob)["unit"]  # type: ignore[attr-defined]
    field.bounds = bounds_of(knob)  # type: ignore[attr-defined]
    return field


def label_of(name: str) -> str:
    """A knob's name as people read it: the same word, with spaces."""
    return name if len(name) == 1 else name.replace("_", " ").capitalize()


def bounds_of(knob: FieldInfo) -> str:
    """Such as `1 to 4,096`; empty where there is none."""
    low = next((_low(one) for one in knob.metadata if isinstance(one, Gt | Ge)), "")
    high = next((_high(one) for one in knob.metadata if isinstance(one, Lt | Le)), "")
    return f"{low}, {high}" if low and high else low or high


def _low(bound: Gt | Ge) -> str:
    return f"above {_number(bound.gt)}" if isinstance(bound, Gt) else f"from {_number(bound.ge)}"


def _high(bound: Lt | Le) -> str:
    return f"below {_number(bound.lt)}" if isinstance(bound, Lt) else f"up to {_number(bound.le)}"


def _number(value: Any) -> str:  # noqa: ANN401 (annotated_types' own protocol)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _plain_field(knob: FieldInfo) -> forms.Field:
    kind, optional = _unwrapped(knob.annotation)
    if kind is bool:
        return forms.BooleanField(required=False)
    if get_origin(kind) is Literal:
        choices = [(one, _choice_label(one, knob)) for one in get_args(kind)]
        return forms.CharField(widget=forms.Select(choices=choices))
    if get_origin(kind) is tuple:
        inner, _ = _unwrapped(get_args(kind)[0])
        if inner is int:
            attrs = {"autocomplete": "off", "placeholder": "such as 64, 128"}
            return NumbersField(required=False, widget=NumbersInput(attrs))
        choices = [(one, label_of(str(one))) for one in get_args(inner)]
        return forms.MultipleChoiceField(
            required=False, choices=choices, widget=forms.CheckboxSelectMultiple
        )
    mode = {int: "numeric", float: "decimal"}[kind]
    attrs = {"inputmode": mode, "autocomplete": "off", "spellcheck": "false"}
    return forms.CharField(required=not optional, widget=forms.TextInput(attrs))


def _choice_label(choice: object, knob: FieldInfo) -> str:
    label = label_of(str(choice))
    only_there = choice in _extra(knob).get("experimental", ())
    return f"{label} (only with a laboratory pair)" if only_there else label


def _unwrapped(annotation: Any) -> tuple[Any, bool]:  # noqa: ANN401 (a type expression)
    """The type without its None, and whether None was in it."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [one for one in get_args(annotation) if one is not type(None)]
        return inner[0], len(inner) < len(get_args(annotation))
    return annotation, False


def _typed(field: forms.BoundField) -> Any:  # noqa: ANN401 (text, list or bool)
    value = field.value()
    if isinstance(field.field, forms.BooleanField):
        return bool(value)
    if isinstance(field.field, forms.MultipleChoiceField):
        return list(value or [])
    text = str("" if value is None else value).strip()
    if isinstance(field.field, NumbersField):
        return [part.strip() for part in text.split(",") if part.strip()]
    return None if text == "" and not field.field.required else text


def _is_changed(field: forms.BoundField) -> bool:
    initial = field.field.initial
    typed = _typed(field)
    if isinstance(initial, tuple):
        return bool(list(initial) != typed)
    if isinstance(initial, int | float) and not isinstance(initial, bool):
        try:
            return float(typed) != float(initial)
        except (TypeError, ValueError):
            return True
    return bool(typed != initial)


def _extra(knob: FieldInfo) -> dict[str, Any]:
    assert isinstance(knob.json_schema_extra, dict)
    return dict(knob.json_schema_extra)
