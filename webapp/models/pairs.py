"""Pairs: one student, its teachers, and how each side renders a prompt."""

from __future__ import annotations

from typing import Self

from django.db import models

from opdcore.contract.teacher import Teaching
from webapp.models.checkpoints import RegisteredModel
from webapp.models.families import Family
from webapp.models.ownership import Owned, OwnedQuerySet


class PairQuerySet(OwnedQuerySet["Pair"]):
    def with_models(self) -> Self:
        """Pairs with the models of both sides, in two queries."""
        return self.select_related("student").prefetch_related("teachers__model")


class Pair(Owned):
    """A student with its teachers; immutable once a run has used it, since runs snapshot it."""

    name = models.CharField(max_length=120)
    student = models.ForeignKey(RegisteredModel, models.PROTECT, related_name="pairs_as_student")
    student_rendering = models.JSONField(default=dict)
    token_map_report = models.JSONField(null=True, blank=True)
    is_laboratory = models.BooleanField(default=False)
    lab_version = models.CharField(max_length=40, blank=True)
    notes = models.TextField(blank=True)
    family = models.ForeignKey(Family, models.SET_NULL, null=True, blank=True, related_name="pairs")

    objects = PairQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="pair_name_once"),
        ]

    def __str__(self) -> str:
        return self.name


class PairTeacher(models.Model):
    """One teacher of a pair, and how it teaches."""

    pair = models.ForeignKey(Pair, models.CASCADE, related_name="teachers")
    model = models.ForeignKey(RegisteredModel, models.PROTECT, related_name="pairs_as_teacher")
    weight = models.FloatField(default=1.0)
    tags = models.JSONField(default=list)
    privileged = models.JSONField(null=True, blank=True)
    follows = models.CharField(max_length=20, default="frozen")
    average_decay = models.FloatField(default=0.99)
    rendering = models.JSONField(default=dict)
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position", "id"]
        constraints = [
            models.UniqueConstraint(fields=["pair", "position"], name="teacher_position_once"),
            models.CheckConstraint(condition=models.Q(weight__gt=0), name="teacher_weight"),
        ]

    def __str__(self) -> str:
        return f"{self.model} teaches {self.pair}"

    @property
    def teaching(self) -> Teaching:
        """How it teaches."""
        return Teaching.model_validate(
            {name: getattr(self, name) for name in Teaching.model_fields}
        )
