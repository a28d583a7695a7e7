"""Where runs are executed: workers, their devices, and who holds which device until when."""

from __future__ import annotations

from django.db import models

from webapp.models.runs import Run


class Worker(models.Model):
    """One worker process of a host; silent for too long means lost."""

    host = models.CharField(max_length=200, unique=True)
    pid = models.PositiveIntegerField()
    heartbeat_at = models.DateTimeField()
    started_at = models.DateTimeField(auto_now_add=True)
    versions = models.JSONField(default=dict)

    class Meta:
        ordering = ["host"]

    def __str__(self) -> str:
        return self.host


class Device(models.Model):
    """A device of a worker, such as cpu:0 or cuda:0."""

    worker = models.ForeignKey(Worker, models.CASCADE, related_name="devices")
    name = models.CharField(max_length=40)
    kind = models.CharField(max_length=12)
    memory_bytes = models.BigIntegerField(null=True, blank=True)

    class Meta:
        ordering = ["worker", "name"]
        constraints = [
            models.UniqueConstraint(fields=["worker", "name"], name="device_once"),
        ]

    def __str__(self) -> str:
        return self.name


class Lease(models.Model):
    """A run's claim on a device; the one row per device is what excludes a second executor.

    Runs that share what the device is held for, such as a teacher's server, have a row each.
    """

    class Role(models.TextChoices):
        TRAIN = "train", "Train"
        SAMPLE = "sample", "Sample"
        TEACHER = "teacher", "Teacher"

    run = models.ForeignKey(Run, models.CASCADE, related_name="leases")
    device = models.ForeignKey(Device, models.CASCADE, related_name="leases")
    attempt = models.PositiveIntegerField()
    role = models.CharField(max_length=8, choices=Role, default=Role.TRAIN)
    shared = models.CharField(max_length=64, blank=True)
    expires_at = models.DateTimeField()

    class Meta:
        ordering = ["expires_at"]
        indexes = [models.Index(fields=["expires_at"], name="lease_by_expiry")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(role__in=["train", "sample", "teacher"]), name="lease_role"
            ),
            models.UniqueConstraint(
                fields=["device"], condition=models.Q(shared=""), name="device_leased_once"
            ),
            models.UniqueConstraint(fields=["device", "run"], name="device_leased_once_by_a_run"),
        ]

    def __str__(self) -> str:
        return f"{self.device} for {self.run_id}"
