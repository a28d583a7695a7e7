"""The form of a new run: what it is made of, and the knobs that are turned just for it.

Each knob comes from the contract, which alone decides whether it is sound. What speaks against a
launch is decided by the services; this form only says at which field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from django import forms
from django.db.models import QuerySet
from pydantic import ValidationError

from opdcore.contract import needs
from opdcore.contract.document import Document
from opdcore.contract.errors import ErrorInfo
from opdcore.contract.evaluation import Evaluation
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.forms.devices import SERVED, DevicesForm
from webapp.forms.knobs import field_of
from webapp.models import ModelEndpoint, Pair, Project, PromptSet, Recipe, RegisteredModel, Run
from webapp.models.recipes import RecipeQuerySet
from webapp.services.asked_parts import AskedParts
from webapp.services.recipe_faults import faults_of

# The knobs that people turn from run to run; all others are on the recipe's own page.
STAGE_KNOBS = (
    "steps",
    "learning_rate",
    "prompts_per_step",
    "rollouts_per_prompt",
    "max_response_tokens",
    "k",
    "evaluate_steps",
    "checkpoint_steps",
)
EVALUATION_KNOBS = ("prompts", "samples_per_prompt")


class KnobsForm(forms.Form):
    """The main knobs of one recipe, with its values in them; field names are the knobs' paths."""

    use_required_attribute = False

    def __init__(self, recipe: Recipe, data: Mapping[str, Any] | None = None) -> None:
        self.document = recipe.contract
        content = self.document.model_dump(mode="json")
        super().__init__(data)
        index = self.stage_index
        if index is not None:
            kind, stage = type(self.document.stages[index]), content["stages"][index]
            for name in (one for one in STAGE_KNOBS if one in stage):
                self._add(f"stages.{index}.{name}", name, kind, stage[name])
        for name in EVALUATION_KNOBS:
            self._add(f"evaluation.{name}", name, Evaluation, content["evaluation"][name])

    @property
    def stage_index(self) -> int | None:
        """The stage whose knobs are shown: the first that distills, else the first that reinforces."""
        kinds = [stage.kind for stage in self.document.stages]
        return next((kinds.index(one) for one in ("distill", "reinforce") if one in kinds), None)

    @property
    def asks_for(self) -> tuple[str, ...]:
        """The roles that the recipe asks for besides."""
        return needs.used(self.document)

    @property
    def stage_knobs(self) -> list[forms.BoundField]:
        return [self[name] for name in self.fields if name.startswith("stages.")]

    @property
    def evaluation_knobs(self) -> list[forms.BoundField]:
        return [self[name] for name in self.fields if name.startswith("evaluation.")]

    def turned(self) -> RecipeDocument | None:
        """The sound recipe with what was typed; None where it is the recipe as it stands."""
        document = RecipeDocument.model_validate(self._content())
        return None if document == self.document else document

    def clean(self) -> dict[str, Any]:
        """Asks the contract; each of its complaints stands at its knob."""
        cleaned = cast("dict[str, Any]", super().clean())
        try:
            RecipeDocument.model_validate(self._content())
        except ValidationError as error:
            for fault in faults_of(error):
                field = fault.path if fault.path in self.fields else None
                if field is None or not self.errors.get(field):
                    self.add_error(field, f"{fault.message} {fault.remedy}")
        return cleaned

    def _add(self, path: str, name: str, document: type[Document], value: object) -> None:
        field = field_of(name, document.model_fields[name])
        # What is typed is text, which the contract reads; an empty one is its complaint to make.
        field.required = False
        field.initial = value
        self.fields[path] = field

    def _content(self) -> dict[str, Any]:
        content = self.document.model_dump(mode="json")
        for path in self.fields:
            *parents, name = path.split(".")
            target: Any = content
            for parent in parents:
                target = target[int(parent)] if parent.isdecimal() else target[parent]
            target[name] = str(self[path].value()).strip()
        return content


class LaunchForm(DevicesForm):
    """What a run is made of."""

    pair = forms.ModelChoiceField(
        Pair.objects.none(), to_field_name="public_id", help_text="The student and its teacher."
    )
    train = forms.ModelChoiceField(
        PromptSet.objects.none(),
        to_field_name="public_id",
        label="Training prompts",
        help_text="The student answers these to learn.",
    )
    held_out = forms.ModelChoiceField(
        PromptSet.objects.none(),
        to_field_name="public_id",
        required=False,
        label="Held-out prompts",
        help_text="Answered only to measure: before, during and after.",
    )
    teacher_content = forms.ModelChoiceField(
        PromptSet.objects.none(),
        to_field_name="public_id",
        required=False,
        label="Teacher's prompts",
        help_text="Prompts of the teacher's own post-training, which the recipe selects from.",
    )
    outside = forms.ModelChoiceField(
        PromptSet.objects.none(),
        to_field_name="public_id",
        required=False,
        label="Outside prompts",
        help_text="Mixed with the teacher's; without them the training prompts are.",
    )
    writer = forms.ModelChoiceField(
        RegisteredModel.objects.none(),
        to_field_name="public_id",
        required=False,
        label="Writer",
        help_text="The model whose responses the cold start learns; it may have another tokenizer.",
    )
    judge = forms.ModelChoiceField(
        ModelEndpoint.objects.none(),
        to_field_name="public_id",
        required=False,
        label="Judge",
        help_text="The registered endpoint whose model grades the responses.",
    )
    recipe = forms.ModelChoiceField(
        Recipe.objects.none(), to_field_name="public_id", help_text="What is done, in stages."
    )
    keep_scores = forms.BooleanField(
        required=False,
        label="Keep the teacher's scores",
        help_text="What it says is kept on the worker: the same run again asks it for nothing, and can be "
        "replayed without it. It then tells its top k alone: support teacher, or form sampled. A token takes "
        "8 bytes for each of the k and one more.",
    )
    name = forms.CharField(
        required=False, max_length=120, help_text="Empty: named after its pair and recipe."
    )
    parent = forms.ModelChoiceField(
        Run.objects.none(),
        to_field_name="public_id",
        required=False,
        widget=forms.HiddenInput,
    )

    def __init__(
        self,
        project: Project,
        data: Mapping[str, Any] | None = None,
        *,
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data, initial=dict(initial or {}))
        choices: dict[str, QuerySet[Any]] = {
            "pair": Pair.objects.filter(project=project).with_models(),
            "train": PromptSet.objects.filter(project=project).ready(),
            "held_out": PromptSet.objects.filter(project=project).ready(),
            "teacher_content": PromptSet.objects.filter(project=project).ready(),
            "outside": PromptSet.objects.filter(project=project).ready(),
            "writer": RegisteredModel.objects.filter(project=project),
            "judge": ModelEndpoint.objects.filter(project=project),
            "recipe": self._recipes(project),
            "parent": Run.objects.filter(project=project),
        }
        endpoints = ModelEndpoint.objects.filter(project=project)
        teacher = cast("forms.ChoiceField", self.fields["teacher_served"])
        teacher.choices = [*SERVED, *((one.public_id, f"Endpoint {one.name}") for one in endpoints)]
        for name, rows in choices.items():
            cast("forms.ModelChoiceField[Any]", self.fields[name]).queryset = rows
        for name in ("held_out", "outside"):
            cast("forms.ModelChoiceField[Any]", self.fields[name]).empty_label = "None"
        for name in ("pair", "train", "teacher_content", "writer", "judge", "recipe"):
            cast("forms.ModelChoiceField[Any]", self.fields[name]).empty_label = "Choose one"

    def _recipes(self, project: Project) -> RecipeQuerySet:
        """The newest version of each, and an older one where the copied run used it."""
        of_project = Recipe.objects.filter(project=project)
        return of_project.newest() | of_project.filter(public_id=self["recipe"].value() or "")

    def asked(self) -> AskedParts:
        """What the recipe asks for besides; only of a valid form."""
        return AskedParts(**{role: self.cleaned_data[role] for role in needs.ROLES})

    def refuse(self, problems: Sequence[ErrorInfo]) -> None:
        """Puts each problem at the field that it names."""
        for problem in problems:
            named = (problem.field or "").partition(".")[0]
            named = "device" if named == "resources" else named
            field = named if named in self.fields else None
            self.add_error(field, f"{problem.message} {problem.remedy}")
