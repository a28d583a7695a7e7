"""The one Django app."""

from django.apps import AppConfig


class WebappConfig(AppConfig):
    name = "webapp"
    verbose_name = "Stillroom"
    default_auto_field = "django.db.models.BigAutoField"
