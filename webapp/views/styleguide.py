"""The style guide: every component in every state, as page authors copy it. It knows no run."""

from __future__ import annotations

from typing import get_args

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from opdcore.contract.outcome import OutcomeCode
from opdcore.contract.verdicts import Verdict

STATUSES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
VERDICTS = (
    Verdict(code="HEALTHY", go="go", confidence="high", explanation="Alignment rises."),
    Verdict(code="HORIZON_RISK", go="undecided", confidence="low", explanation="Signal fades."),
    Verdict(
        code="PATTERN_MISMATCH", go="no_go", confidence="medium", explanation="Overlap is low."
    ),
)


class SpecimenForm(forms.Form):
    """One field of each kind; bound with values that are wrong."""

    name = forms.CharField(help_text="Shown in lists and charts.", max_length=80)
    learning_rate = forms.FloatField(help_text="Peak rate of AdamW.", min_value=0.0)
    pair = forms.ChoiceField(choices=[("a", "Qwen3-1.7B from Qwen3-8B"), ("b", "Laboratory pair")])
    notes = forms.CharField(required=False, widget=forms.Textarea({"rows": 2}))
    rows = forms.FileField(required=False, help_text="JSONL, CSV or Parquet.")
    support = forms.ChoiceField(
        choices=[("student", "Student"), ("teacher", "Teacher"), ("union", "Union")],
        widget=forms.RadioSelect,
        help_text="Whose k tokens are compared.",
    )
    on_failing = forms.BooleanField(required=False, label="Stop where the monitor says no-go")

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.fields["learning_rate"].unit = "per step"  # type: ignore[attr-defined]
        self.fields["learning_rate"].bounds = "above 0, at most 0.01"  # type: ignore[attr-defined]


def specimen() -> SpecimenForm:
    form = SpecimenForm(
        {"name": "Sweep 3", "learning_rate": "0", "pair": "a", "support": "teacher"}
    )
    form.add_error("learning_rate", "learning_rate is 0: nothing would be learned. Try 0.00001.")
    return form


def styleguide(request: HttpRequest) -> HttpResponse:
    outcomes = get_args(OutcomeCode)
    context = {"form": specimen(), "statuses": STATUSES, "verdicts": VERDICTS, "outcomes": outcomes}
    return render(request, "styleguide.html", context)
