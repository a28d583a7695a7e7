"""The form of a diagnosis: prompts, how they are graded, and what is known of the teacher.

Knobs come from the contract, which alone decides whether they are sound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from django import forms
from pydantic import ValidationError

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.evaluation import Evaluation, Goal
from opdcore.contract.probe import DiagnoseStage
from webapp.forms.knobs import field_of
from webapp.models import Pair, PromptSet
from webapp.services import diagnoses, lineage
from webapp.services.diagnoses import Plan
from webapp.services.recipe_faults import faults_of

STAGE_KNOBS = ("prompts", "rollouts_per_prompt", "max_response_tokens", "relation")
RELATIONS = (
    ("unknown", "Not known"),
    ("descendant", "The student, trained further"),
    ("same_pipeline", "From the student's own pipeline, perhaps larger"),
    ("ancestor", "What the student was made from"),
    ("unrelated", "Made by others, from other data"),
)


class DiagnosisForm(forms.Form):
    """What is probed of one pair; filled in as the pair is usually distilled."""

    use_required_attribute = False

    prompt_set = forms.ModelChoiceField(
        PromptSet.objects.none(),
        to_field_name="public_id",
        label="Prompt set",
        empty_label=None,
        help_text="Prompts that the run would train on; a verdict holds for these.",
    )

    def __init__(self, pair: Pair, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        usual = diagnoses.usual_recipe(pair)
        known = {"relation": lineage.relation(pair)}
        self.usual = diagnoses.stage_like(usual).model_copy(update=known)
        ready = PromptSet.objects.filter(project=pair.project).ready()
        prompt_sets = cast("forms.ModelChoiceField[PromptSet]", self.fields["prompt_set"])
        prompt_sets.queryset = ready
        prompt_sets.initial = diagnoses.usual_prompts(pair)
        verifier = field_of("verifier", Evaluation.model_fields["verifier"])
        verifier.initial = usual.evaluation.verifier if usual else "none"
        verifier.help_text = "Without one, nothing says who is right, and only part can be judged."
        goal = field_of("kind", Goal.model_fields["kind"])
        goal.label, goal.initial = "Goal", usual.goal.kind if usual else "acquire"
        goal.help_text = "What the run would be for; the verdict is judged against it."
        self.fields |= {"verifier": verifier, "goal": goal}
        for name in STAGE_KNOBS:
            field = field_of(name, DiagnoseStage.model_fields[name])
            field.initial = getattr(self.usual, name)
            self.fields[name] = field
        relation = self.fields["relation"]
        relation.label = "The teacher is"
        relation.help_text = (
            "As far as you know; what runs tell of it is filled in. It is evidence, never the "
            "verdict alone."
        )
        relation.widget = forms.Select(choices=RELATIONS)

    def clean(self) -> dict[str, Any]:
        """Asks the contract; each of its complaints stands at its knob."""
        cleaned = super().clean() or {}
        try:
            cleaned["verifier"] = Evaluation(verifier=cleaned.get("verifier", "")).verifier
            cleaned["goal"] = Goal(kind=cleaned.get("goal", "")).kind
            cleaned["stage"] = self._stage(cleaned["verifier"])
        except ValidationError as error:
            for fault in faults_of(error):
                name = "goal" if fault.path == "kind" else fault.path
                field = name if name in self.fields else None
                self.add_error(field, f"{fault.message} {fault.remedy}")
        return cleaned

    def plan(self) -> Plan:
        """What was chosen; only of a valid form."""
        chosen = self.cleaned_data
        return Plan(
            prompt_set=chosen["prompt_set"],
            stage=chosen["stage"],
            verifier=chosen["verifier"],
            goal=chosen["goal"],
        )

    def refuse(self, problems: Iterable[ErrorInfo]) -> None:
        """Puts each problem at the field that it names: what a run trains on is probed here."""
        for problem in problems:
            named = (problem.field or "").rpartition(".")[2]
            field = {"train": "prompt_set"}.get(named, named)
            told = f"{problem.message} {problem.remedy}"
            self.add_error(field if field in self.fields else None, told)

    def _stage(self, verifier: str) -> DiagnoseStage:
        """Without a verifier nobody can say who goes on better, so no hand-off is asked for."""
        typed = {name: str(self[name].value()).strip() for name in STAGE_KNOBS}
        tiers = ("static", "scored") if verifier == "none" else ("static", "scored", "hand_off")
        return DiagnoseStage.model_validate(self.usual.model_dump() | typed | {"tiers": tiers})
