"""Forms of families: a name, a pack, and a pair's choice of family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from django import forms

from opdcore.contract.errors import ErrorInfo
from webapp.models import Family, Pair
from webapp.services.controls import MOST_OF_EACH
from webapp.services.families import LONGEST_NAME


class RefusableForm(forms.Form):
    """A form that shows what a service refused, at its field where it has one."""

    use_required_attribute = False

    def refuse(self, problems: Iterable[ErrorInfo]) -> None:
        for problem in problems:
            field = problem.field if problem.field in self.fields else None
            at = "" if field or not problem.field else f" (at {problem.field})"
            self.add_error(field, f"{problem.message}{at} {problem.remedy}")


class FamilyNameForm(RefusableForm):
    name = forms.CharField(
        max_length=LONGEST_NAME,
        help_text="Such as the models' name and size, and what the prompts ask for.",
    )


class PackForm(RefusableForm):
    """An exported calibration."""

    file = forms.FileField(
        label="Calibration pack",
        help_text="A JSON file that was exported from a family's page.",
        widget=forms.FileInput({"accept": ".json,application/json"}),
    )


class PairFamilyForm(RefusableForm):
    """An existing family of the pair's project, or the name of a new one."""

    family = forms.ModelChoiceField(
        Family.objects.none(),
        to_field_name="public_id",
        required=False,
        empty_label="No family",
        help_text="Pairs of like models and prompts, which are judged by the same cut-offs.",
    )
    name = forms.CharField(
        label="Or a new one",
        max_length=LONGEST_NAME,
        required=False,
        help_text="Its name; it is created, and the pair put into it.",
    )

    def __init__(self, pair: Pair, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        field = cast("forms.ModelChoiceField[Family]", self.fields["family"])
        field.queryset = Family.objects.filter(project=pair.project)
        field.initial = pair.family


class ControlsForm(RefusableForm):
    of_each = forms.TypedChoiceField(
        label="Runs of each",
        coerce=int,
        choices=[(count, str(count)) for count in range(1, MOST_OF_EACH + 1)],
        help_text="Of different seeds. Three of a control are the fewest that move a cut-off.",
    )
