"""Log-in with a limit on failures, API tokens, and members of a project."""

from __future__ import annotations

from datetime import date
from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.exceptions import ValidationError
from django.utils import timezone

from webapp.models import Role, User
from webapp.services import login_limits


class LoginForm(AuthenticationForm):
    """Refuses, before it looks at the password, a name or address that failed too often."""

    def clean(self) -> dict[str, Any]:
        name, address = self.cleaned_data.get("username") or "", self._address()
        if login_limits.is_blocked(name, address):
            raise ValidationError(
                "Too many failed attempts. Wait five minutes, then try again.", code="rate_limited"
            )
        try:
            return super().clean()
        except ValidationError:
            login_limits.note_failure(name, address)
            raise

    def _address(self) -> str | None:
        return login_limits.address_of(self.request) if self.request else None


class ApiTokenForm(forms.Form):
    name = forms.CharField(max_length=80, help_text="Where it will be used, such as CI.")
    expires_at = forms.DateField(
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}),
        help_text="Empty: it does not expire.",
    )

    def clean_expires_at(self) -> date | None:
        day: date | None = self.cleaned_data["expires_at"]
        if day is not None and day <= timezone.now().date():
            raise ValidationError(f"{day} is not in the future; choose a later day.")
        return day


class ProjectForm(forms.Form):
    name = forms.CharField(
        max_length=80, help_text="What the team works on; shown in the switcher."
    )


class MemberForm(forms.Form):
    user = forms.ModelChoiceField(
        User.objects.filter(is_active=True).order_by("username"),
        to_field_name="username",
        empty_label="Choose somebody",
    )
    role = forms.ChoiceField(choices=Role.choices, initial=Role.MEMBER)


class NewUserForm(forms.Form):
    """Somebody who has no account yet; the first password is made, not chosen."""

    username = forms.CharField(
        max_length=150,
        validators=[UnicodeUsernameValidator()],
        help_text="What they log in with.",
        widget=forms.TextInput({"autocomplete": "off", "spellcheck": "false"}),
    )
    role = forms.ChoiceField(choices=Role.choices, initial=Role.MEMBER)
