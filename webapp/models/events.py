"""What a run said: its events as written, and its metrics as series.

A series is `(run, stage_index, metric)`. Its newest points are the run's events after
`Run.compacted_seq`; older ones lie in `MetricChunk`, one row per metric and span of steps, with a
`MetricRollup` beside each, which keeps minimum, maximum, last and the count of non-finite values of
every bucket, so that neither a spike nor a NaN of one step is ever averaged away. These models know
no encoding of the columns: the series service does.
"""

from __future__ import annotations

from typing import Self

from django.db import models

from webapp.models.ownership import OwnedQuerySet
from webapp.models.runs import Run


class EventQuerySet(OwnedQuerySet["Event"]):
    membership_path = "run__project__memberships__user"

    def after(self, seq: int) -> Self:
        """Events after this one, in the order in which they were recorded."""
        return self.filter(seq__gt=seq).order_by("seq")


class Event(models.Model):
    """One line of a job; `payload` is the original text of the line's payload."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="events")
    seq = models.PositiveBigIntegerField()
    attempt = models.PositiveIntegerField()
    line = models.PositiveBigIntegerField()
    stage_index = models.PositiveSmallIntegerField(null=True, blank=True)
    step = models.PositiveIntegerField(null=True, blank=True)
    kind = models.CharField(max_length=20)
    at = models.DateTimeField()
    payload = models.TextField()

    objects = EventQuerySet.as_manager()

    class Meta:
        ordering = ["run", "seq"]
        constraints = [
            models.UniqueConstraint(fields=["run", "seq"], name="event_seq_once"),
            models.UniqueConstraint(fields=["run", "attempt", "line"], name="event_line_once"),
        ]
        indexes = [models.Index(fields=["run", "kind", "seq"], name="event_by_kind")]

    def __str__(self) -> str:
        return f"{self.kind} {self.seq}"


class MetricChunk(models.Model):
    """A span of one series: `steps` and `values` as columns."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="metric_chunks")
    stage_index = models.PositiveSmallIntegerField()
    metric = models.CharField(max_length=60)
    first_step = models.PositiveIntegerField()
    last_step = models.PositiveIntegerField()
    count = models.PositiveIntegerField()
    steps = models.BinaryField()
    values = models.BinaryField()

    class Meta:
        ordering = ["run", "stage_index", "metric", "first_step"]
        constraints = [
            models.UniqueConstraint(
                fields=["run", "stage_index", "metric", "first_step"], name="chunk_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.metric} {self.first_step}-{self.last_step}"


class MetricRollup(models.Model):
    """The buckets of one chunk; `columns` holds step, last, minimum, maximum, nonfinite."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="metric_rollups")
    stage_index = models.PositiveSmallIntegerField()
    metric = models.CharField(max_length=60)
    first_step = models.PositiveIntegerField()
    last_step = models.PositiveIntegerField()
    count = models.PositiveIntegerField()
    columns = models.BinaryField()

    class Meta:
        ordering = ["run", "stage_index", "metric", "first_step"]
        constraints = [
            models.UniqueConstraint(
                fields=["run", "stage_index", "metric", "first_step"], name="rollup_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.metric} {self.first_step}-{self.last_step}"


class PositionRow(models.Model):
    """One step's metrics by position chunk: `metrics` names the rows of `values`, by comma.

    All blobs are little-endian: edges and positions whole numbers, values (metrics, chunks) in
    single precision, NaN where nothing defines one. A later attempt's step replaces an earlier one's.
    """

    run = models.ForeignKey(Run, models.CASCADE, related_name="position_rows")
    stage_index = models.PositiveSmallIntegerField()
    step = models.PositiveIntegerField()
    metrics = models.TextField()
    edges = models.BinaryField()
    positions = models.BinaryField()
    values = models.BinaryField()

    class Meta:
        ordering = ["run", "stage_index", "step"]
        constraints = [
            models.UniqueConstraint(
                fields=["run", "stage_index", "step"], name="position_row_once"
            ),
        ]

    def __str__(self) -> str:
        return f"positions of step {self.step}"
