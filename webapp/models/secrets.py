"""What must stay secret, sealed: a project's own environment variables, and keys of endpoints."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from webapp.models.ownership import Owned, OwnedQuerySet


class ProjectSecret(Owned):
    """An environment variable that a project's jobs get, such as HF_TOKEN."""

    name = models.CharField(max_length=80)
    sealed = models.TextField()
    last_four = models.CharField(max_length=4, blank=True)
    set_at = models.DateTimeField()
    set_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )

    objects = OwnedQuerySet["ProjectSecret"].as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="secret_name_once"),
        ]

    def __str__(self) -> str:
        return self.name


class ModelEndpoint(Owned):
    """A model behind a server, as an admin registered it; `probe` is what it last answered."""

    name = models.CharField(max_length=80)
    base_url = models.CharField(max_length=500)
    model = models.CharField(max_length=200)
    sealed_key = models.TextField(blank=True)
    last_four = models.CharField(max_length=4, blank=True)
    probe = models.JSONField(null=True, blank=True)
    probed_at = models.DateTimeField(null=True, blank=True)

    objects = OwnedQuerySet["ModelEndpoint"].as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="endpoint_name_once"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def key_variable(self) -> str:
        """The environment variable in which a job finds the key."""
        return f"ENDPOINT_KEY_{self.public_id.upper()}"
