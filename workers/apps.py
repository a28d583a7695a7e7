"""The workers as a Django app: it has commands, and no rows of its own."""

from django.apps import AppConfig


class WorkersConfig(AppConfig):
    name = "workers"
