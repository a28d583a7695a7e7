"""Registered models: a local directory, a hub repository, or the output of a run."""

from __future__ import annotations

from typing import Self

from django.db import models

from webapp.models.ownership import Owned, OwnedQuerySet


class ModelRootQuerySet(OwnedQuerySet["ModelRoot"]):
    """Reads of allowed folders."""


class ModelRoot(Owned):
    """A folder under which a project's local models must lie."""

    path = models.CharField(max_length=1000)

    objects = ModelRootQuerySet.as_manager()

    class Meta:
        ordering = ["path"]
        constraints = [
            models.UniqueConstraint(fields=["project", "path"], name="model_root_once"),
        ]

    def __str__(self) -> str:
        return self.path


class RegisteredModelQuerySet(OwnedQuerySet["RegisteredModel"]):
    def ready(self) -> Self:
        """Models that could be inspected, or whose inspection waits for the launch."""
        return self.filter(state__in=["ready", "registered"])


class RegisteredModel(Owned):
    """A checkpoint by name; `card` is what its folder says, read without loading any weight."""

    class Source(models.TextChoices):
        LOCAL = "local", "Local folder"
        HUB = "hub", "Hugging Face hub"
        RUN = "run", "Output of a run"

    class State(models.TextChoices):
        READY = "ready", "Ready"
        REGISTERED = "registered", "Fetched at launch"
        ERROR = "error", "Cannot be used"

    name = models.CharField(max_length=120)
    source_kind = models.CharField(max_length=8, choices=Source)
    path = models.CharField(max_length=1000, blank=True)
    repo = models.CharField(max_length=200, blank=True)
    revision = models.CharField(max_length=120, blank=True)
    run = models.ForeignKey(
        "webapp.Run", models.PROTECT, null=True, blank=True, related_name="output_models"
    )
    state = models.CharField(max_length=12, choices=State)
    card = models.JSONField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True)

    objects = RegisteredModelQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="model_name_once"),
            models.CheckConstraint(
                name="model_source",
                condition=(
                    models.Q(source_kind="local") & ~models.Q(path="")
                    | models.Q(source_kind="hub") & ~models.Q(repo="") & ~models.Q(revision="")
                    | models.Q(source_kind="run", run__isnull=False)
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.name
