"""The recipe's form: its name, goal, evaluation and ordered stages, each from the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from django import forms
from django.http import QueryDict
from pydantic import ValidationError

from opdcore.contract.evaluation import Evaluation, Goal
from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.contract.recipe import Stage
from webapp.forms.knobs import KnobForm, label_of
from webapp.services.recipe_faults import Fault, faults_of

STAGES = {stage.model_fields["kind"].default: stage for stage in get_args(get_args(Stage)[0])}
Move = Literal["up", "down", "remove"]


class HeadForm(forms.Form):
    """What the recipe is called, what it is for, and its seed."""

    name = forms.CharField(help_text=RecipeDocument.model_fields["name"].description or "")
    description = forms.CharField(
        required=False,
        widget=forms.Textarea({"rows": 2}),
        help_text=RecipeDocument.model_fields["description"].description or "",
    )
    seed = forms.CharField(
        initial="0",
        widget=forms.TextInput({"inputmode": "numeric", "autocomplete": "off"}),
        help_text=RecipeDocument.model_fields["seed"].description or "",
    )
    use_required_attribute = False


@dataclass(frozen=True, slots=True)
class StageSection:
    """One stage of the form, with its place."""

    index: int
    kind: str
    form: KnobForm

    @property
    def label(self) -> str:
        return label_of(self.kind)

    @property
    def number(self) -> int:
        return self.index + 1

    @property
    def help(self) -> str:
        return (STAGES[self.kind].__doc__ or "").split("\n")[0]


class RecipeForm:
    """The sections together: bound to what was typed, or showing a document."""

    def __init__(self, data: Mapping[str, Any] | None, kinds: list[str]) -> None:
        self.head = HeadForm(data)
        self.goal = KnobForm(Goal, prefix="goal", data=data)
        self.evaluation = KnobForm(Evaluation, prefix="evaluation", data=data)
        self.stages = [
            StageSection(index, kind, KnobForm(STAGES[kind], prefix=f"stages.{index}", data=data))
            for index, kind in enumerate(kinds)
        ]
        self.faults: list[Fault] = []
        self.other_faults: list[Fault] = []

    @classmethod
    def typed(cls, data: QueryDict) -> RecipeForm:
        """The form as it was sent; stages of an unknown kind are left out."""
        return cls(data, [kind for kind in data.getlist("stage_kinds") if kind in STAGES])

    @classmethod
    def of(cls, document: RecipeDocument) -> RecipeForm:
        """The form that shows this document."""
        return cls(_query_of(document), [stage.kind for stage in document.stages])

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Stages that can be added."""
        return [(kind, label_of(kind)) for kind in STAGES]

    def content(self) -> dict[str, Any]:
        """What was typed, in the shape of a recipe."""
        return {
            "name": self.head["name"].value() or "",
            "description": self.head["description"].value() or "",
            "seed": self.head["seed"].value() or "",
            "goal": self.goal.content(),
            "evaluation": self.evaluation.content(),
            "stages": [{"kind": section.kind, **section.form.content()} for section in self.stages],
        }

    def document(self) -> RecipeDocument | None:
        """The sound recipe; None where there are faults, which then stand at their fields."""
        try:
            return RecipeDocument.model_validate(self.content())
        except ValidationError as error:
            self.faults = faults_of(error)
        for fault in self.faults:
            self._place(fault)
        return None

    def fault_texts(self) -> dict[str, str]:
        """Message and remedy by field name, for the check while typing."""
        return {fault.path: f"{fault.message} {fault.remedy}" for fault in self.faults}

    def moved(self, index: int, move: Move) -> RecipeForm:
        """The same form with one stage elsewhere, or gone."""
        order = list(range(len(self.stages)))
        place = order.pop(index)
        if move != "remove":
            order.insert(max(0, index + (-1 if move == "up" else 1)), place)
        return self._reordered([self.stages[one] for one in order])

    def added(self, kind: str) -> RecipeForm:
        """The same form with another stage at its end, at its defaults."""
        form = KnobForm(STAGES[kind], prefix="")
        return self._reordered([*self.stages, StageSection(len(self.stages), kind, form)])

    def _reordered(self, sections: list[StageSection]) -> RecipeForm:
        data = QueryDict(mutable=True)
        for form in (self.head, self.goal, self.evaluation):
            _put(data, form, form.prefix or "")
        for index, section in enumerate(sections):
            _put(data, section.form, f"stages.{index}")
        return RecipeForm(data, [section.kind for section in sections])

    def _place(self, fault: Fault) -> None:
        form, name = self._owner(fault.path)
        if form is None or name not in form.fields:
            self.other_faults.append(fault)
            return
        if not form.errors.get(name):
            form.add_error(name, f"{fault.message} {fault.remedy}")

    def _owner(self, path: str) -> tuple[forms.Form | None, str]:
        head, _, name = path.rpartition(".")
        sections: dict[str, forms.Form] = {
            "": self.head,
            "goal": self.goal,
            "evaluation": self.evaluation,
            **{f"stages.{section.index}": section.form for section in self.stages},
        }
        return sections.get(head), name


def _query_of(document: RecipeDocument) -> QueryDict:
    data = QueryDict(mutable=True)
    content = document.model_dump(mode="json")
    for name in ("name", "description", "seed"):
        data[name] = str(content[name])
    _spread(data, "goal", content["goal"])
    _spread(data, "evaluation", content["evaluation"])
    for index, stage in enumerate(content["stages"]):
        _spread(data, f"stages.{index}", stage)
    return data


def _spread(data: QueryDict, prefix: str, content: dict[str, Any]) -> None:
    for name, value in content.items():
        _set(data, f"{prefix}.{name}", value)


def _put(data: QueryDict, form: forms.Form, prefix: str) -> None:
    for name in form.fields:
        _set(data, f"{prefix}.{name}" if prefix else name, form[name].value())


def _set(data: QueryDict, key: str, value: Any) -> None:  # noqa: ANN401 (a JSON value)
    """As a browser sends it: an unchecked box and an empty list are absent."""
    if isinstance(value, list | tuple):
        data.setlist(key, [str(one) for one in value])
    elif isinstance(value, bool):
        if value:
            data[key] = "on"
    else:
        data[key] = "" if value is None else str(value)
