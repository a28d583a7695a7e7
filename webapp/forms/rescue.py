"""The form of a rescue: the plan's changes to be edited in place, and its whole recipe as YAML.

Each knob comes from the contract, which alone decides whether the recipe is sound. What is typed at a
knob goes before what the YAML says of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from django import forms
from pydantic import ValidationError

from opdcore.contract.recipe import Recipe
from opdcore.contract.rescue import Change, RescuePlan
from webapp.forms.knobs import field_of, group_of, knobs_of, label_of
from webapp.forms.recipe import STAGES
from webapp.services import health
from webapp.services.recipe_faults import faults_of
from webapp.services.recipe_yaml import BadRecipe, read_yaml, write_yaml

# Of a stage that is put in, the knobs that decide what it costs and does.
STAGE_GROUPS = ("length", "sampling", "optimizer")


@dataclass(frozen=True, slots=True)
class ShownChange:
    """A change with its fields: one for a knob, several for a stage that is put in."""

    change: Change
    place: str
    label: str
    fields: tuple[forms.BoundField, ...]

    @property
    def is_stage(self) -> bool:
        return self.change.path.count(".") == 1

    @property
    def evidence(self) -> list[str]:
        """What the reason rests on, such as `Effective overlap 0.12`."""
        return [
            row.label if row.value is None else f"{row.label} {row.value:.3g}"
            for row in health.rows(self.change.evidence)
        ]

    @property
    def has_errors(self) -> bool:
        return any(field.errors for field in self.fields)


class RescueForm(forms.Form):
    """What a person may still turn before the rescue starts; as it stands it is the plan."""

    use_required_attribute = False

    yaml = forms.CharField(
        label="The whole recipe",
        required=False,
        strip=False,
        widget=forms.Textarea({"rows": 24, "spellcheck": "false", "class": "mono"}),
        help_text="Every knob can be changed here; what is typed at a change above goes before it.",
    )
    control = forms.BooleanField(
        required=False,
        label="Also run a control arm",
        help_text="The parent's recipe, continued for as many steps: it shows what the rescue adds.",
    )
    seen = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, planned: RescuePlan, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        assert planned.recipe is not None
        self.planned, self.recipe = planned, planned.recipe
        self.document: Recipe | None = None
        self._plain = self.recipe.model_dump(mode="json")
        self.fields["yaml"].initial = write_yaml(self.recipe)
        self.fields["seen"].initial = digest(self.recipe)
        for change in planned.changes:
            for path in self._paths(change):
                self._add(path)

    @property
    def changes(self) -> list[ShownChange]:
        """The plan's changes in order, each with its fields."""
        return [
            ShownChange(
                change,
                *self._named(change.path),
                fields=tuple(self[path] for path in self._paths(change)),
            )
            for change in self.planned.changes
        ]

    @property
    def edited(self) -> list[forms.BoundField]:
        """The fields of the recipe, each with a place for its errors."""
        return [self[name] for name in self.fields if name not in ("control", "seen")]

    @property
    def has_moved(self) -> bool:
        """Whether the plan is another one than that which was on the page."""
        return self.is_bound and self["seen"].value() != digest(self.recipe)

    def clean(self) -> dict[str, Any]:
        """Asks the contract; each of its complaints stands at its knob, others at the YAML."""
        cleaned = cast("dict[str, Any]", super().clean())
        try:
            written = read_yaml(self["yaml"].value() or write_yaml(self.recipe))
            self.document = Recipe.model_validate(self._typed_into(written))
        except BadRecipe as error:
            for problem in error.problems:
                where = f"{problem.field}: " if problem.field else ""
                self.add_error("yaml", f"{where}{problem.message} {problem.remedy}")
        except ValidationError as error:
            for fault in faults_of(error):
                field = fault.path if fault.path in self.fields else "yaml"
                where = "" if field == fault.path else f"{fault.path}: "
                self.add_error(field, f"{where}{fault.message} {fault.remedy}")
        return cleaned

    def _typed_into(self, written: Recipe) -> dict[str, Any]:
        """The YAML's recipe with the knobs that were turned in place."""
        content = written.model_dump(mode="json")
        for path in self.fields.keys() - {"yaml", "control", "seen"}:
            typed = _typed(self[path])
            if typed == _shown(_at(self._plain, path)):
                continue
            *parents, name = path.split(".")
            stage = _at(content, ".".join(parents))
            if stage is None or name not in stage:
                self.add_error(path, "The YAML below has no such knob any more. Turn it there.")
                continue
            stage[name] = None if typed == "" else typed
        return content

    def _paths(self, change: Change) -> list[str]:
        """The knobs that a change turns: its own, or the main ones of a stage that is put in."""
        if change.path.count(".") != 1:
            return [change.path]
        stage = STAGES[str(change.after)]
        return [
            f"{change.path}.{name}"
            for name, knob in knobs_of(stage).items()
            if group_of(knob) in STAGE_GROUPS and _is_basic(knob)
        ]

    def _add(self, path: str) -> None:
        _, index, name = path.split(".")
        knob = type(self.recipe.stages[int(index)]).model_fields[name]
        field = field_of(name, knob)
        # What is typed is text, which the contract reads; an empty one is its complaint to make.
        field.required = False
        field.initial = _at(self._plain, path)
        self.fields[path] = field

    def _named(self, path: str) -> tuple[str, str]:
        """Where a change is and what it is called, as people read it."""
        _, index, *knob = path.split(".")
        stage = label_of(self.recipe.stages[int(index)].kind)
        return f"Stage {int(index) + 1}", label_of(knob[0]) if knob else stage


def digest(recipe: Recipe) -> str:
    """Tells one plan's recipe from another's."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:16]


def _is_basic(knob: Any) -> bool:  # noqa: ANN401 (pydantic's field)
    return bool(knob.json_schema_extra["level"] == "basic")


def _at(content: Any, path: str) -> Any:  # noqa: ANN401 (JSON)
    """What stands there; None where nothing does."""
    for part in path.split("."):
        if isinstance(content, list):
            content = content[int(part)] if int(part) < len(content) else None
        else:
            content = (content or {}).get(part)
    return content


def _typed(field: forms.BoundField) -> str | bool:
    value = field.value()
    return value if isinstance(value, bool) else str("" if value is None else value).strip()


def _shown(value: object) -> str | bool:
    """A knob's value as its field shows it."""
    return value if isinstance(value, bool) else "" if value is None else str(value)
