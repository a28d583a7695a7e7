"""Runs, and what people and jobs leave on them: comments and artifacts."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from webapp.models.checkpoints import RegisteredModel
from webapp.models.ownership import Owned, OwnedQuerySet
from webapp.models.pairs import Pair
from webapp.models.prompt_sets import PromptSet
from webapp.models.recipes import Recipe
from webapp.models.secrets import ModelEndpoint

ACTIVE = ("queued", "running", "paused")
ENDED = ("succeeded", "failed", "cancelled")


class RunQuerySet(OwnedQuerySet["Run"]):
    def active(self) -> Self:
        """Runs that have not ended."""
        return self.filter(status__in=ACTIVE)

    def listed(self) -> Self:
        """What a row of the run list needs: no snapshot, no notes, names joined."""
        return self.select_related("pair", "recipe", "created_by").defer(
            "snapshot",
            "notes",
            "resources",
            "predicted",
            "recipe__document",
            "pair__token_map_report",
        )


class Run(Owned):
    """One execution of a recipe on a pair and prompt sets, with its latest numbers."""

    class Status(models.TextChoices):
        QUEUED = "queued", "Queued"
        RUNNING = "running", "Running"
        PAUSED = "paused", "Paused"
        SUCCEEDED = "succeeded", "Succeeded"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    class Review(models.TextChoices):
        UNREVIEWED = "unreviewed", "Unreviewed"
        NEEDS_CHANGES = "needs_changes", "Needs changes"
        APPROVED = "approved", "Approved"
        REJECTED = "rejected", "Rejected"

    class Relation(models.TextChoices):
        CLONE = "clone", "Clone"
        RESUME = "resume", "Resume"
        RESCUE = "rescue", "Rescue"
        CONTROL = "control", "Control"
        REPLAY = "replay", "Replay"

    name = models.CharField(max_length=120)
    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED)
    attempt = models.PositiveIntegerField(default=0)
    host = models.CharField(max_length=200, blank=True)
    losses = models.PositiveSmallIntegerField(default=0)
    pair = models.ForeignKey(Pair, models.PROTECT, related_name="runs")
    recipe = models.ForeignKey(Recipe, models.PROTECT, related_name="runs")
    train_set = models.ForeignKey(PromptSet, models.PROTECT, related_name="runs_as_train")
    held_out_set = models.ForeignKey(
        PromptSet, models.PROTECT, null=True, blank=True, related_name="runs_as_held_out"
    )
    teacher_content_set = models.ForeignKey(
        PromptSet, models.PROTECT, null=True, blank=True, related_name="runs_as_teacher_content"
    )
    outside_set = models.ForeignKey(
        PromptSet, models.PROTECT, null=True, blank=True, related_name="runs_as_outside"
    )
    writer = models.ForeignKey(
        RegisteredModel, models.PROTECT, null=True, blank=True, related_name="runs_as_writer"
    )
    judge = models.ForeignKey(
        ModelEndpoint, models.SET_NULL, null=True, blank=True, related_name="runs_as_judge"
    )
    parent = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="children"
    )
    # Null like every missing thing; the constraint below ties it to the parent.
    relation = models.CharField(  # noqa: DJ001
        max_length=8, choices=Relation, null=True, blank=True
    )
    snapshot = models.JSONField()
    resources = models.JSONField(default=dict)
    # Whether it names models of the hub; the host that has fetched them, and the one that does so now.
    downloads = models.BooleanField(default=False)
    downloaded_to = models.CharField(max_length=200, blank=True)
    downloading_to = models.CharField(max_length=200, blank=True)
    # What decides the teacher's server of its own, so that runs of equal ones can share it.
    teacher_server = models.CharField(max_length=64, blank=True)
    notes = models.TextField(blank=True)
    tags = models.JSONField(default=list)
    review = models.CharField(max_length=14, choices=Review, default=Review.UNREVIEWED)
    reviewed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    reviewed_at = models.DateTimeField(null=True, blank=True)

    queued_at = models.DateTimeField(default=timezone.now)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True)
    outcome = models.JSONField(null=True, blank=True)
    health = models.JSONField(null=True, blank=True)
    proof = models.JSONField(null=True, blank=True)
    progress = models.JSONField(null=True, blank=True)

    last_seq = models.PositiveBigIntegerField(default=0)
    compacted_seq = models.PositiveBigIntegerField(default=0)
    step = models.PositiveIntegerField(default=0)
    steps_total = models.PositiveIntegerField(default=0)
    stage_index = models.PositiveSmallIntegerField(null=True, blank=True)
    reward = models.FloatField(null=True, blank=True)
    overlap_ratio = models.FloatField(null=True, blank=True)
    loss = models.FloatField(null=True, blank=True)
    accuracy = models.FloatField(null=True, blank=True)
    gap_recovery = models.FloatField(null=True, blank=True)
    seconds = models.FloatField(default=0)
    device_seconds = models.FloatField(default=0)
    student_tokens = models.PositiveBigIntegerField(default=0)
    teacher_tokens = models.PositiveBigIntegerField(default=0)
    # What the launch was taken to need, beside the most that was measured since.
    predicted = models.JSONField(null=True, blank=True)
    peak_memory_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    disk_bytes = models.PositiveBigIntegerField(null=True, blank=True)

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=[*ACTIVE, *ENDED]), name="run_status"
            ),
            models.CheckConstraint(
                condition=models.Q(parent__isnull=True) | models.Q(relation__isnull=False),
                name="run_relation",
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-created_at", "-id"], name="run_by_time"),
            models.Index(fields=["project", "status", "-created_at"], name="run_by_status"),
            models.Index(fields=["project", "review", "-created_at"], name="run_by_review"),
            models.Index(fields=["project", "name", "id"], name="run_by_name"),
            models.Index(fields=["project", "reward", "id"], name="run_by_reward"),
            models.Index(fields=["project", "overlap_ratio", "id"], name="run_by_overlap"),
            models.Index(fields=["project", "loss", "id"], name="run_by_loss"),
            models.Index(fields=["project", "accuracy", "id"], name="run_by_accuracy"),
            models.Index(fields=["project", "gap_recovery", "id"], name="run_by_recovery"),
            models.Index(fields=["status", "queued_at"], name="run_queue"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.public_id})"

    @property
    def bell(self) -> str:
        """The channel group that is rung when this run has new events."""
        return f"run.{self.public_id}"

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def wants_rescue(self) -> bool:
        """It trains, its latest verdict is a bad one, and it did not succeed in spite of that."""
        failing = self.health is not None and self.health["go"] == "no_go"
        succeeded = self.outcome is not None and self.outcome["code"] == "success"
        return failing and bool(self.steps_total) and not succeeded

    @property
    def is_stopping(self) -> bool:
        """Somebody asked it to stop and it still works on that."""
        return self.cancel_requested_at is not None and not self.has_ended

    @property
    def duration(self) -> timedelta | None:
        """Wall time since its first start; None before it."""
        if self.started_at is None:
            return None
        return (self.finished_at or timezone.now()) - self.started_at


class Comment(models.Model):
    """What somebody said about a run."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="comments")
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    text = models.TextField()
    at = models.DateTimeField(auto_now_add=True)
    edited_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["at", "id"]

    def __str__(self) -> str:
        return self.text[:60]


class ArtifactQuerySet(OwnedQuerySet["Artifact"]):
    membership_path = "run__project__memberships__user"

    def kept(self) -> Self:
        """Artifacts that the policy of what is kept has not removed."""
        return self.filter(dropped=False)


class Artifact(models.Model):
    """A file or folder that a run wrote; `storage_key` is its place in STORAGES["artifacts"]."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="artifacts")
    attempt = models.PositiveIntegerField()
    kind = models.CharField(max_length=12)
    key = models.CharField(max_length=300)
    storage_key = models.CharField(max_length=400, blank=True)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    dropped = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["run", "attempt", "key"], name="artifact_once"),
        ]

    def __str__(self) -> str:
        return self.key
