"""Log-in, password and API tokens."""

from __future__ import annotations

from datetime import datetime, time

from django.contrib import messages
from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.forms.account import ApiTokenForm, LoginForm
from webapp.services import accounts
from webapp.views.scope import actor

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


def _end_of_day(day: object) -> datetime | None:
    if day is None:
        return None
    return timezone.make_aware(datetime.combine(day, time.max))  # type: ignore[arg-type]
