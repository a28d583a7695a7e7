"""Diagnoses: the latest verdict on a pair with a prompt set, for one goal.

The whole diagnosis lies in its run's events; a row here is what lists and the matrix read.
"""

from __future__ import annotations

from typing import Self

from django.db import models

from opdcore.contract.verdicts import Verdict
from webapp.models.ownership import OwnedQuerySet
from webapp.models.pairs import Pair
from webapp.models.prompt_sets import PromptSet
from webapp.models.runs import Run


class PairDiagnosisQuerySet(OwnedQuerySet["PairDiagnosis"]):
    membership_path = "pair__project__memberships__user"

    def with_parts(self) -> Self:
        """Diagnoses with their run's and prompt set's names, newest first."""
        return self.select_related("run", "prompt_set").defer("run__snapshot", "run__notes")


class PairDiagnosis(models.Model):
    """What the newest diagnosis said; `weights` is what the models' headers were then."""

    pair = models.ForeignKey(Pair, models.CASCADE, related_name="diagnoses")
    prompt_set = models.ForeignKey(PromptSet, models.CASCADE, related_name="diagnoses")
    goal = models.CharField(max_length=10)
    run = models.ForeignKey(Run, models.CASCADE, related_name="diagnoses")
    code = models.CharField(max_length=40)
    verdict = models.JSONField()
    calibration = models.CharField(max_length=200, blank=True)
    prompts = models.PositiveIntegerField(default=0)
    weights = models.TextField(blank=True)
    diagnosed_at = models.DateTimeField()

    objects = PairDiagnosisQuerySet.as_manager()

    class Meta:
        ordering = ["-diagnosed_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["pair", "prompt_set", "goal"], name="diagnosis_newest_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.code} for {self.pair}"

    @property
    def contract(self) -> Verdict:
        """The verdict as the contract knows it."""
        return Verdict.model_validate(self.verdict)
