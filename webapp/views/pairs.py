"""Pairs: list, page, the form with its token-map check, and the preview of both renderings."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Prompt
from opdcore.contract.rendering import Rendering
from opdcore.contract.teacher import Privileged
from webapp.forms.diagnosis import DiagnosisForm
from webapp.forms.families import ControlsForm, PairFamilyForm
from webapp.forms.parts import PairForm, PreviewPromptForm, SideForm, TeacherForm, refuse
from webapp.models import Pair, Project, PromptSet, RegisteredModel
from webapp.permissions import allows, require
from webapp.services import controls, diagnoses, family_report, health, prompt_sets
from webapp.services import pairs as pair_service
from webapp.services.pairs import Preview
from webapp.services.runs import LaunchRefused
from webapp.views.scope import actor, chosen_project, visible

MOST_TEACHERS = 8


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a preview, by name."""

    label: str
    model: RegisteredModel
    preview: Preview | None


@dataclass(frozen=True, slots=True)
class PairForms:
    """The forms that make a pair together."""

    pair: PairForm
    student: SideForm
    teachers: list[TeacherForm]
    prompt: PreviewPromptForm

    def are_valid(self) -> bool:
        """Whether all of them are."""
        forms = [self.pair, self.student, *self.teachers]
        return all(form.is_valid() for form in forms)

    def sides_are_valid(self) -> bool:
        """Whether models and renderings are chosen, whatever the name is."""
        return all(form.is_valid() for form in (self.student, *self.teachers))


@require_GET
def pairs(request: HttpRequest) -> HttpResponse:
    project = chosen_project(request)
    rows = Pair.objects.visible_to(request.user).filter(project=project).with_models()
    context = {"pairs": rows.annotate(run_count=Count("runs", distinct=True))}
    return render(request, "pairs/index.html", context)


@require_http_methods(["GET", "POST"])
def new_pair(request: HttpRequest) -> HttpResponse:
    """The form; `teachers` counts its teachers, and adding one sends it without saving."""
    project = chosen_project(request)
    require(actor(request), "edit", project)
    forms = _forms(request, project)
    if request.method == "POST" and request.POST.get("action") == "save":
        pair = _created(request, project, forms)
        if pair is not None:
            messages.success(request, f"{pair.name} is ready: its token maps were compared.")
            return redirect("pair", pair.public_id)
        return render(request, "pairs/new.html", {"forms": forms}, status=422)
    return render(request, "pairs/new.html", {"forms": forms})


@require_POST
def check_pair(request: HttpRequest) -> HttpResponse:
    """Fragment: the token maps of what is chosen, and the prompt as each side reads it."""
    project = chosen_project(request)
    require(actor(request), "edit", project)
    forms = _forms(request, project)
    if not forms.sides_are_valid():
        return render(request, "pairs/_check.html", {"waiting": True, "forms": forms})
    student = forms.student.cleaned_data["model"]
    choices = [form.choice() for form in forms.teachers]
    prompt = _prompt(request.POST.get("preview_prompt", ""))
    sides = [_side("Student", student, forms.student.rendering(), prompt)]
    sides += [
        _side("Teacher", one.model, one.rendering, prompt, one.teaching.privileged)
        for one in choices
    ]
    context: dict[str, object] = {"sides": sides}
    try:
        context["report"] = pair_service.check(student, choices)
    except BadInput as error:
        context["error"] = error.info
    return render(request, "pairs/_check.html", context)


@require_GET
def pair(request: HttpRequest, public_id: str) -> HttpResponse:
    return pair_page(request, public_id)


@require_POST
def diagnose(request: HttpRequest, public_id: str) -> HttpResponse:
    """Launches a run that only diagnoses the pair."""
    row = visible(Pair.objects.select_related("project"), request, public_id)
    require(actor(request), "launch", row.project)
    form = DiagnosisForm(row, request.POST)
    if form.is_valid():
        try:
            return redirect(
                "run", diagnoses.launch(row, form.plan(), actor=actor(request)).public_id
            )
        except LaunchRefused as refused:
            form.refuse(refused.problems)
        except BadInput as error:
            form.refuse([error.info])
    return pair_page(request, public_id, form=form, status=422)


@require_POST
def diagnosis_cost(request: HttpRequest, public_id: str) -> HttpResponse:
    """Fragment: what the diagnosis that is being filled in would write at most."""
    row = visible(Pair.objects.select_related("project"), request, public_id)
    form = DiagnosisForm(row, request.POST)
    plan = form.plan() if form.is_valid() else None
    return render(request, "pairs/_diagnosis_cost.html", {"plan": plan})


@require_GET
def matrix(request: HttpRequest) -> HttpResponse:
    """All students by all teachers of the project, with what diagnoses said."""
    project = chosen_project(request)
    context = {
        "matrix": diagnoses.matrix(project),
        "may_launch": allows(request.user, "launch", project),
        "may_edit": allows(request.user, "edit", project),
    }
    return render(request, "pairs/matrix.html", context)


def pair_page(
    request: HttpRequest,
    public_id: str,
    *,
    form: DiagnosisForm | None = None,
    family_form: PairFamilyForm | None = None,
    controls_form: ControlsForm | None = None,
    status: int = 200,
) -> HttpResponse:
    """The page of a pair; with the form that was refused, if one was."""
    rows = Pair.objects.with_models().select_related("project", "student", "family")
    row = visible(rows, request, public_id)
    prompt = _prompt(request.GET.get("preview_prompt", "") or _example(row))
    teachers = list(row.teachers.all())
    sides = [_side("Student", row.student, row.student_rendering, prompt)]
    sides += [
        _side("Teacher", one.model, one.rendering, prompt, one.teaching.privileged)
        for one in teachers
    ]
    context = {
        "pair": row,
        "project": row.project,
        "teachers": teachers,
        "sides": sides,
        "report": row.token_map_report,
        "prompt_form": PreviewPromptForm(initial={"preview_prompt": prompt.prompt}),
        "runs": row.runs.all()[:10],
        "may_edit": allows(request.user, "edit", row.project),
    }
    context |= _diagnosed(request, row, form)
    context |= _family(request, row, family_form, controls_form)
    return render(request, "pairs/detail.html", context, status=status)


def _diagnosed(request: HttpRequest, row: Pair, form: DiagnosisForm | None) -> dict[str, object]:
    """What diagnoses said of the pair, and the form of the next one."""
    latest = diagnoses.latest(row)
    first = latest[0] if latest else None
    may_launch = allows(request.user, "launch", row.project)
    shown = form or DiagnosisForm(row)
    return {
        "latest": first,
        "said": health.said(first.row.contract, at=first.row.diagnosed_at) if first else None,
        "others": latest[1:],
        "diagnosis_runs": diagnoses.runs_behind(row),
        "form": shown if may_launch else None,
        "plan": diagnoses.usual_plan(row),
    }


def _family(
    request: HttpRequest, row: Pair, chosen: PairFamilyForm | None, asked: ControlsForm | None
) -> dict[str, object]:
    """The pair's family, what its controls say so far, and what more of them would take."""
    context: dict[str, object] = {
        "family": row.family,
        "family_form": chosen or PairFamilyForm(row),
        "controls_form": asked or ControlsForm(),
        "is_control": controls.is_control(row),
        "may_launch": allows(request.user, "launch", row.project),
    }
    if row.family is not None:
        context["control_cards"] = family_report.control_cards(row.family)
        try:
            context["controls_plan"] = controls.plan(row)
        except BadInput as error:
            context["controls_refused"] = error.info
    return context


@require_POST
def delete_pair(request: HttpRequest, public_id: str) -> HttpResponse:
    row = visible(Pair.objects.select_related("project"), request, public_id)
    try:
        pair_service.delete(row, actor=actor(request))
    except BadInput as error:
        messages.error(request, f"{error.info.message} {error.info.remedy}")
        return redirect("pair", public_id)
    messages.success(request, f"{row.name} is deleted.")
    return redirect("pairs")


def _forms(request: HttpRequest, project: Project) -> PairForms:
    data = request.POST if request.method == "POST" else None
    count = max(1, min(MOST_TEACHERS, _number(request.POST.get("teachers"))))
    if request.POST.get("action") == "add_teacher":
        count = min(MOST_TEACHERS, count + 1)
    if request.POST.get("action") == "remove_teacher":
        count = max(1, count - 1)
    return PairForms(
        pair=PairForm(data),
        student=SideForm(
            data, project=project, prefix="student", initial=_asked(request, "student")
        ),
        teachers=[
            TeacherForm(
                _with_weight(data, index),
                project=project,
                prefix=f"teacher-{index}",
                initial=_asked(request, "teacher"),
            )
            for index in range(count)
        ],
        prompt=PreviewPromptForm(data),
    )


def _asked(request: HttpRequest, side: str) -> dict[str, str]:
    """The model that the address names for a side, such as the matrix does for a pair to be."""
    return {"model": request.GET[side]} if side in request.GET else {}


def _with_weight(data: object, index: int) -> object:
    """A teacher that was just added has nothing typed: it shows its defaults."""
    if data is None or f"teacher-{index}-weight" in data:  # type: ignore[operator]
        return data
    return None


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 1


def _created(request: HttpRequest, project: Project, forms: PairForms) -> Pair | None:
    if not forms.are_valid():
        return None
    try:
        return pair_service.create(
            forms.pair.cleaned_data["name"],
            project=project,
            actor=actor(request),
            student=forms.student.cleaned_data["model"],
            student_rendering=forms.student.rendering(),
            teachers=[form.choice() for form in forms.teachers],
            notes=forms.pair.cleaned_data["notes"],
        )
    except BadInput as error:
        refuse(forms.pair, [error.info])
        return None


def _side(
    label: str,
    model: RegisteredModel,
    rendering: Rendering | dict[str, object],
    prompt: Prompt,
    privileged: Privileged | None = None,
) -> Side:
    sound = Rendering.model_validate(rendering)
    return Side(label, model, pair_service.preview(model, sound, prompt, privileged))


def _prompt(text: str) -> Prompt:
    """What is previewed; its privileged text is what a prompt set would bring with it."""
    asked = text if text.strip() else "What is 2 + 2?"
    return Prompt(prompt=asked, privileged="(this prompt's privileged text)")


def _example(pair: Pair) -> str:
    """The first prompt of the newest set of prompts that the pair has met, else of the project."""
    rows = PromptSet.objects.ready().filter(project=pair.project)
    met = rows.filter(runs_as_train__pair=pair).order_by("-created_at").first()
    row = met or rows.order_by("created_at").first()
    first = prompt_sets.first_prompt(row) if row else None
    return (first.prompt or "") if first else ""
