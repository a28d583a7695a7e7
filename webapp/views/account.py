"""Log-in, password, API tokens, members and the audit log."""

from __future__ import annotations

from datetime import datetime, time

from django.contrib import messages
from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeView
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from opdcore.contract.errors import BadInput
from webapp.forms.account import ApiTokenForm, LoginForm, MemberForm
from webapp.models import AuditEntry, Role, User
from webapp.permissions import allows, require
from webapp.services import accounts, projects
from webapp.views.scope import actor, chosen_project

ENTRIES_PER_PAGE = 50

log_in = LoginView.as_view(
    template_name="account/login.html",
    authentication_form=LoginForm,
    redirect_authenticated_user=True,
)
log_out = LogoutView.as_view()


class PasswordView(PasswordChangeView):
    """Changes one's own password."""

    template_name = "account/password.html"
    success_url = reverse_lazy("account")

    def form_valid(self, form: object) -> HttpResponse:
        messages.success(self.request, "Your password is changed.")
        return super().form_valid(form)  # type: ignore[arg-type]


@require_GET
def home(_request: HttpRequest) -> HttpResponse:
    """The way in: the project's runs."""
    return redirect("runs")


@require_http_methods(["GET", "POST"])
def account(request: HttpRequest) -> HttpResponse:
    """One's tokens, and a form for another."""
    form = ApiTokenForm(request.POST or None)
    secret = None
    if request.method == "POST" and form.is_valid():
        _, secret = accounts.create_token(
            form.cleaned_data["name"],
            actor=actor(request),
            expires_at=_end_of_day(form.cleaned_data["expires_at"]),
        )
        form = ApiTokenForm()
    context = {"form": form, "secret": secret, "tokens": actor(request).api_tokens.all()}
    return render(request, "account/account.html", context)


@require_POST
def delete_token(request: HttpRequest, token_id: int) -> HttpResponse:
    token = get_object_or_404(actor(request).api_tokens, pk=token_id)
    accounts.delete_token(token, actor=actor(request))
    messages.success(request, f"The token {token.name} is deleted; scripts with it are refused.")
    return redirect("account")


@require_http_methods(["GET", "POST"])
def members(request: HttpRequest) -> HttpResponse:
    """Who is in the project, and a form that sets a role."""
    project = chosen_project(request)
    form = MemberForm(request.POST or None)
    if request.method == "POST":
        require(actor(request), "administer", project)
        if form.is_valid() and _set_role(request, form):
            return redirect("members")
    context = {
        "project": project,
        "form": form,
        "memberships": project.memberships.select_related("user").order_by("user__username"),
        "may_administer": allows(request.user, "administer", project),
    }
    return render(request, "projects/members.html", context)


@require_POST
def remove_member(request: HttpRequest, username: str) -> HttpResponse:
    project = chosen_project(request)
    require(actor(request), "administer", project)
    user = get_object_or_404(User, username=username)
    try:
        projects.remove_member(project, user, actor=actor(request))
    except BadInput as error:
        messages.error(request, str(error))
    return redirect("members")


@require_GET
def audit_log(request: HttpRequest) -> HttpResponse:
    """What was changed in the project, newest first."""
    project = chosen_project(request)
    entries = AuditEntry.objects.visible_to(request.user).filter(project=project)
    page = Paginator(entries.select_related("actor"), ENTRIES_PER_PAGE).get_page(
        request.GET.get("page")
    )
    return render(request, "projects/audit_log.html", {"project": project, "page": page})


def _set_role(request: HttpRequest, form: MemberForm) -> bool:
    try:
        projects.set_role(
            chosen_project(request),
            form.cleaned_data["user"],
            role=Role(form.cleaned_data["role"]),
            actor=actor(request),
        )
    except BadInput as error:
        form.add_error("role", f"{error.info.message} {error.info.remedy}")
        return False
    return True


def _end_of_day(day: object) -> datetime | None:
    if day is None:
        return None
    return timezone.make_aware(datetime.combine(day, time.max))  # type: ignore[arg-type]
