"""Recipes: immutable documents, versioned by name."""

from __future__ import annotations

from typing import Self

from django.db import models
from django.db.models import OuterRef, Subquery

from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.models.ownership import Owned, OwnedQuerySet


class RecipeQuerySet(OwnedQuerySet["Recipe"]):
    def newest(self) -> Self:
        """The newest version of each name."""
        versions = Recipe.objects.filter(project=OuterRef("project"), name=OuterRef("name"))
        return self.filter(pk=Subquery(versions.order_by("-version").values("pk")[:1]))


class Recipe(Owned):
    """One version of a recipe; `document` is the contract's recipe as JSON."""

    name = models.CharField(max_length=120)
    version = models.PositiveIntegerField()
    document = models.JSONField()
    sha256 = models.CharField(max_length=64)
    is_preset = models.BooleanField(default=False)

    objects = RecipeQuerySet.as_manager()

    class Meta:
        ordering = ["name", "-version"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "name", "version"], name="recipe_version_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"

    @property
    def contract(self) -> RecipeDocument:
        """The recipe as the contract knows it."""
        return RecipeDocument.model_validate(self.document)
