"""Prompt sets: stored once as canonical JSON lines, hashed, versioned by name, never changed."""

from __future__ import annotations

from typing import Self

from django.db import models

from webapp.models.ownership import Owned, OwnedQuerySet


class PromptSetQuerySet(OwnedQuerySet["PromptSet"]):
    def present(self) -> Self:
        """Sets that were not deleted."""
        return self.filter(deleted_at__isnull=True)

    def ready(self) -> Self:
        """Sets that a run can use."""
        return self.present().filter(state="ready")


class PromptSet(Owned):
    """One version of a list of prompts. `done_bytes` of `source_bytes` is the import's progress."""

    class State(models.TextChoices):
        IMPORTING = "importing", "Importing"
        READY = "ready", "Ready"
        FAILED = "failed", "Failed"

    class Format(models.TextChoices):
        JSONL = "jsonl", "JSON lines"
        CSV = "csv", "CSV"
        PARQUET = "parquet", "Parquet"

    name = models.CharField(max_length=120)
    version = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=State)
    format = models.CharField(max_length=8, choices=Format)
    source_name = models.CharField(max_length=255)
    source_bytes = models.BigIntegerField(default=0)
    done_bytes = models.BigIntegerField(default=0)
    done_at = models.DateTimeField(auto_now=True)
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.BigIntegerField(default=0)
    rows = models.PositiveIntegerField(default=0)
    storage_key = models.CharField(max_length=200, blank=True)
    stats = models.JSONField(default=dict)
    errors = models.JSONField(default=list)
    error_count = models.PositiveIntegerField(default=0)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = PromptSetQuerySet.as_manager()

    class Meta:
        ordering = ["name", "-version"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "name", "version"], name="prompt_set_version_once"
            ),
            models.CheckConstraint(
                name="prompt_set_ready",
                condition=~models.Q(state="ready")
                | ~models.Q(sha256="") & ~models.Q(storage_key="") & models.Q(rows__gt=0),
            ),
        ]
        indexes = [models.Index(fields=["project", "sha256"], name="prompt_set_by_hash")]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"

    @property
    def progress(self) -> float:
        """Share of the source that was read, in [0, 1]."""
        if self.state == self.State.READY:
            return 1.0
        return min(1.0, self.done_bytes / self.source_bytes) if self.source_bytes else 0.0
