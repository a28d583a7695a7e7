"""The Celery application: it carries wake-ups by task name and knows no task's code."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")

app = Celery("stillroom")
app.config_from_object("django.conf:settings", namespace="CELERY")
