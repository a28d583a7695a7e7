"""Recipes: each saved version is immutable; a name's next version is one more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Max

from opdcore.contract.errors import BadInput
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.models import Project, Recipe, User
from webapp.permissions import require
from webapp.services import audit
from webapp.services.recipe_yaml import read_yaml


@dataclass(frozen=True, slots=True)
class Change:
    """A knob that differs between two versions; None where one of them does not have it."""

    path: str
    before: str | None
    after: str | None


@transaction.atomic
def save(
    document: RecipeDocument, *, project: Project, actor: User, is_preset: bool = False
) -> Recipe:
    """Saves the document as the next version of its name; BadInput where nothing changed."""
    require(actor, "edit", project)
    sha256 = digest(document)
    same_name = Recipe.objects.filter(project=project, name=document.name)
    newest = same_name.order_by("-version").first()
    if newest is not None and newest.sha256 == sha256:
        raise BadInput(
            "recipe.unchanged",
            f"Nothing differs from {newest}.",
            remedy="Change a knob, or use that version.",
            field="name",
        )
    recipe = Recipe.objects.create(
        project=project,
        created_by=actor,
        name=document.name,
        version=(same_name.aggregate(newest=Max("version"))["newest"] or 0) + 1,
        document=document.model_dump(mode="json"),
        sha256=sha256,
        is_preset=is_preset,
    )
    audit.record(actor, "create", project=project, about=recipe, detail={"name": str(recipe)})
    return recipe


def save_if_changed(
    document: RecipeDocument, *, project: Project, actor: User, is_preset: bool = False
) -> Recipe:
    """The newest version of that name where it is equal, else a new one."""
    rows = Recipe.objects.filter(project=project, name=document.name).order_by("-version")
    newest = rows.first()
    if newest is not None and newest.sha256 == digest(document):
        return newest
    return save(document, project=project, actor=actor, is_preset=is_preset)


def load_presets(*, project: Project, actor: User) -> list[Recipe]:
    """The shipped recipes, each as a preset of the project."""
    documents = (read_yaml(path.read_text(encoding="utf-8")) for path in preset_files())
    return [
        save_if_changed(document, project=project, actor=actor, is_preset=True)
        for document in documents
    ]


def preset_files() -> list[Path]:
    """The recipes that ship with Stillroom."""
    return sorted((settings.BASE_DIR / "recipes").glob("*.yaml"))


def equal_or_saved(document: RecipeDocument, *, project: Project, actor: User) -> Recipe:
    """The version of that name that is equal, whatever came after it; else a new one."""
    same = Recipe.objects.filter(project=project, name=document.name, sha256=digest(document))
    return same.first() or save(document, project=project, actor=actor)


def digest(document: RecipeDocument) -> str:
    """SHA-256 of the document as compact JSON with sorted keys."""
    text = json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """What differs between two documents, knob by knob, in the order of the documents."""
    old, new = dict(_flat(before)), dict(_flat(after))
    paths = dict.fromkeys([*old, *new])
    return [
        Change(path, old.get(path), new.get(path))
        for path in paths
        if old.get(path) != new.get(path)
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 (JSON)
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{index}")
    else:
        yield path, json.dumps(value, ensure_ascii=False).strip('"')
