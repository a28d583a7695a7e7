"""Forms for what a run is made of: models, roots, pairs, prompt sets, recipes as YAML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from pydantic import ValidationError as PydanticError

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.rendering import Rendering
from opdcore.contract.teacher import PRIVILEGED as PRIVILEGED_MARK
from opdcore.contract.teacher import PROMPT as PROMPT_MARK
from opdcore.contract.teacher import Privileged, Teaching
from webapp.models import Project, RegisteredModel
from webapp.services.pairs import TeacherChoice

THINKING = [("", "The template's default"), ("on", "On"), ("off", "Off")]
FOLLOWS = [
    ("frozen", "Frozen: its own"),
    ("average", "A moving average of the student"),
    ("student", "The student's at every step"),
]
PRIVILEGED = [
    ("", "None: it reads what the student reads"),
    ("rule", "One rule for every prompt"),
    ("prompt", "Each prompt's own privileged text"),
]
TEMPLATES = [("auto", "The model's own, where it has one"), ("none", "None: the raw text")]


def refuse(form: forms.Form, problems: Iterable[ErrorInfo]) -> None:
    """Puts each problem at its field, or above the form where it has none there."""
    for problem in problems:
        name = (problem.field or "").split(" ")[0].split(".")[-1]
        field = name if name in form.fields else None
        form.add_error(field, f"{problem.message} {problem.remedy} [{problem.code}]")


class LocalModelForm(forms.Form):
    """A folder of this server."""

    name = forms.CharField(
        max_length=120, required=False, help_text="Empty: the name of the folder."
    )
    path = forms.CharField(
        label="Folder",
        max_length=1000,
        help_text="With config.json, a tokenizer and safetensors, under an allowed folder.",
        widget=forms.TextInput({"spellcheck": "false", "autocomplete": "off"}),
    )


class HubModelForm(forms.Form):
    """A repository of the Hugging Face hub."""

    name = forms.CharField(
        max_length=120, required=False, help_text="Empty: the name of the repository."
    )
    repo = forms.CharField(
        label="Repository",
        max_length=200,
        help_text="owner/name, such as Qwen/Qwen3-0.6B-Base.",
        widget=forms.TextInput({"spellcheck": "false", "autocomplete": "off"}),
    )
    revision = forms.CharField(
        max_length=120,
        initial="main",
        help_text="Commit, tag or branch. A commit never changes.",
    )


class ModelRootForm(forms.Form):
    path = forms.CharField(
        label="Folder of this server",
        max_length=1000,
        help_text="Models under it may be registered by every member of the project.",
        widget=forms.TextInput({"spellcheck": "false", "autocomplete": "off"}),
    )


class SideForm(forms.Form):
    """One side of a pair: a model and its rendering."""

    model = forms.ModelChoiceField(RegisteredModel.objects.none(), to_field_name="public_id")
    chat_template = forms.ChoiceField(choices=TEMPLATES, required=False)
    thinking = forms.ChoiceField(
        choices=THINKING, required=False, help_text="For templates with a thinking mode."
    )
    system_prompt = forms.CharField(
        required=False,
        widget=forms.Textarea({"rows": 2}),
        help_text="Put before the conversation; needs a chat template.",
    )
    extra_stop_ids = forms.CharField(
        required=False,
        help_text="Token ids, separated by commas, that end a response beside the model's own.",
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:  # noqa: ANN401 (Django's)
        super().__init__(*args, **kwargs)
        models = RegisteredModel.objects.ready().filter(project=project)
        self.fields["model"].queryset = models  # type: ignore[attr-defined]

    def clean_extra_stop_ids(self) -> tuple[int, ...]:
        text = self.cleaned_data["extra_stop_ids"]
        parts = [part.strip() for part in text.split(",") if part.strip()]
        odd = [part for part in parts if not part.isascii() or not part.isdigit()]
        if odd:
            raise ValidationError(
                f"{odd[0]!r} is no token id. Give whole numbers, such as 0, 151645."
            )
        return tuple(int(part) for part in parts)

    def rendering(self) -> Rendering:
        """The side's rendering; only of a valid form."""
        thinking = {"on": True, "off": False}.get(self.cleaned_data["thinking"])
        return Rendering(
            chat_template=self.cleaned_data["chat_template"] or "auto",
            thinking=thinking,
            system_prompt=self.cleaned_data["system_prompt"] or None,
            extra_stop_ids=self.cleaned_data["extra_stop_ids"],
        )


class TeacherForm(SideForm):
    """A teacher: a side, and how it teaches."""

    weight = forms.FloatField(
        initial=1.0,
        min_value=0.001,
        max_value=1000,
        help_text="How much it says beside the other teachers of a prompt.",
    )
    tags = forms.CharField(
        required=False,
        help_text="Only prompts with one of these tags, separated by commas; empty: all.",
    )
    follows = forms.ChoiceField(
        label="Weights",
        choices=FOLLOWS,
        required=False,
        help_text="The last two make the student its own teacher, and need its own model here.",
    )
    average_decay = forms.FloatField(
        initial=0.99,
        min_value=0,
        max_value=0.9999,
        required=False,
        help_text="Of a moving average: what a step leaves of the average before it.",
    )
    source = forms.ChoiceField(
        label="Privileged text",
        choices=PRIVILEGED,
        required=False,
        help_text="What this teacher reads and the student does not.",
    )
    rule = forms.CharField(
        required=False,
        widget=forms.Textarea({"rows": 2}),
        help_text="The text of one rule for every prompt.",
    )
    form = forms.CharField(
        label="How it is put",
        required=False,
        initial=Privileged.model_fields["form"].default,
        widget=forms.Textarea({"rows": 4, "class": "mono"}),
        help_text=f"What the teacher reads in place of the prompt; names {PRIVILEGED_MARK} and {PROMPT_MARK}.",
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        try:
            self._teaching = Teaching.model_validate(self._said(cleaned))
        except PydanticError as error:
            first = error.errors()[0]
            place = str(first["loc"][-1]) if first["loc"] else "source"
            name = place if place in self.fields else "source"
            self.add_error(name, first["msg"].removeprefix("Value error, "))
        return cleaned

    def choice(self) -> TeacherChoice:
        """The teacher as the service takes it; only of a valid form."""
        return TeacherChoice(
            model=self.cleaned_data["model"], rendering=self.rendering(), teaching=self._teaching
        )

    def _said(self, cleaned: dict[str, Any]) -> dict[str, Any]:
        tags = tuple(tag.strip() for tag in (cleaned.get("tags") or "").split(",") if tag.strip())
        said = {"weight": cleaned.get("weight") or 1.0, "tags": tags}
        said["follows"] = cleaned.get("follows") or "frozen"
        if cleaned.get("average_decay") is not None:
            said["average_decay"] = cleaned["average_decay"]
        if cleaned.get("source"):
            said["privileged"] = {
                "source": cleaned["source"],
                "rule": cleaned.get("rule") or None,
                **({"form": cleaned["form"]} if cleaned.get("form") else {}),
            }
        return said


class PairForm(forms.Form):
    """A pair's name and notes; its sides are forms of their own."""

    name = forms.CharField(max_length=120, help_text="Shown in lists and charts.")
    notes = forms.CharField(required=False, widget=forms.Textarea({"rows": 2}))


class PreviewPromptForm(forms.Form):
    """The prompt that both sides render in the preview."""

    preview_prompt = forms.CharField(
        label="Prompt",
        initial="What is 2 + 2?",
        widget=forms.Textarea({"rows": 2}),
        required=False,
    )


class PromptSetForm(forms.Form):
    """An upload."""

    name = forms.CharField(
        max_length=120, required=False, help_text="An existing name gets a new version."
    )
    file = forms.FileField(
        help_text="JSON lines, CSV or Parquet, in UTF-8.",
        widget=forms.FileInput({"accept": ".jsonl,.ndjson,.json,.csv,.parquet,.pq"}),
    )


class YamlForm(forms.Form):
    """A recipe as YAML: pasted, or a file."""

    text = forms.CharField(
        label="YAML",
        required=False,
        widget=forms.Textarea({"rows": 18, "spellcheck": "false", "class": "mono"}),
    )
    file = forms.FileField(required=False, widget=forms.FileInput({"accept": ".yaml,.yml"}))

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if cleaned.get("file") is not None:
            try:
                cleaned["text"] = cleaned["file"].read(1 << 20).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValidationError("The file is not UTF-8. Save it as UTF-8.") from error
        if not (cleaned.get("text") or "").strip():
            raise ValidationError("There is no YAML yet. Paste it, or choose a file.")
        return cleaned
