"""Families: pairs that are judged alike, with the calibration that their finished runs make.

What a calibration says, this module does not know.
"""

from __future__ import annotations

from django.db import models

from opdcore.contract.calibration import Calibration
from webapp.models.ownership import Owned, OwnedQuerySet


class Family(Owned):
    """`document` is the present calibration; `imported` a pack that stands in where runs are missing."""

    name = models.CharField(max_length=120)
    document = models.JSONField()
    imported = models.JSONField(null=True, blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = OwnedQuerySet["Family"].as_manager()

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "families"
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="family_name_once"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def calibration(self) -> Calibration:
        """The present calibration as the contract knows it."""
        return Calibration.model_validate(self.document)

    @property
    def pack(self) -> Calibration | None:
        """The imported pack as the contract knows it."""
        return Calibration.model_validate(self.imported) if self.imported else None

    @property
    def has_controls(self) -> bool:
        """Without any, its calibration would say less than the laboratory's."""
        return bool(self.document["controls"])
