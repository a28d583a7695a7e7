"""Forms of what is secret: a project's secret, and an endpoint with its key."""

from __future__ import annotations

from django import forms

PASSWORD = {"autocomplete": "off", "spellcheck": "false"}


class SecretForm(forms.Form):
    name = forms.CharField(
        max_length=80,
        help_text="The environment variable, such as HF_TOKEN. A name that is there is replaced.",
        widget=forms.TextInput({"autocomplete": "off", "spellcheck": "false"}),
    )
    value = forms.CharField(
        max_length=4096,
        help_text="Kept encrypted and given to jobs of this project; nobody sees it again.",
        widget=forms.PasswordInput(PASSWORD),
    )


class EndpointForm(forms.Form):
    name = forms.CharField(max_length=80, help_text="What it is called here.")
    base_url = forms.CharField(
        label="Address",
        max_length=500,
        help_text="Of a server with an API as OpenAI's, such as http://teacher:8000.",
        widget=forms.URLInput({"spellcheck": "false", "autocomplete": "off"}),
    )
    model = forms.CharField(
        max_length=200,
        help_text="Its name there.",
        widget=forms.TextInput({"spellcheck": "false", "autocomplete": "off"}),
    )
    key = forms.CharField(
        max_length=4096,
        required=False,
        help_text="Kept encrypted; nobody sees it again.",
        widget=forms.PasswordInput(PASSWORD),
    )
