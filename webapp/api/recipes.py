"""Recipes: listed, read, checked, and saved from JSON or YAML as the next version of their name."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse
from ninja import Query, Router, Schema, Status
from pydantic import Field, ValidationError

from opdcore.contract.document import Document
from opdcore.contract.errors import BadInput
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.api import errors, scope
from webapp.api.references import REFUSALS, WRITE_REFUSALS, ErrorList
from webapp.models import Recipe
from webapp.services import recipe_yaml, recipes
from webapp.services.recipe_faults import faults_of

router = Router(tags=["Recipes"])


class RecipeRow(Schema):
    """One version of a recipe; versions never change."""

    public_id: str
    name: str
    version: int
    sha256: str
    is_preset: bool
    created_at: datetime


class RecipeReply(RecipeRow):
    """A recipe with every knob."""

    document: dict[str, Any] = Field(description="As /api/recipes/schema describes.")


class RecipePage(Schema):
    items: list[RecipeRow]
    next: str | None


class RecipesQuery(scope.ListQuery):
    """Newest versions, or all of one name."""

    name: str | None = Field(None, description="All versions of this name.")


class RecipeText(Document):
    """A recipe as JSON (`document`) or as YAML (`yaml`): one of the two."""

    document: dict[str, Any] | None = Field(
        None, description="As /api/recipes/schema describes; knobs that are absent have defaults."
    )
    yaml: str | None = Field(None, description="The same as YAML.")

    def parsed(self) -> RecipeDocument:
        """The recipe; raises BadInput with each knob at fault."""
        if (self.document is None) == (self.yaml is None):
            raise BadInput(
                "recipe.one_text",
                "Both document and yaml are given." if self.yaml else "No recipe is given.",
                remedy="Give either document (JSON) or yaml (text).",
                field="document",
            )
        if self.yaml is not None:
            return recipe_yaml.read_yaml(self.yaml)
        try:
            return RecipeDocument.model_validate(self.document)
        except ValidationError as error:
            raise recipe_yaml.BadRecipe(
                [errors.info_of(one) for one in faults_of(error)]
            ) from error


class RecipeBody(RecipeText):
    """A recipe to save."""

    project: str | None = Field(None, description="Needed where you are in several.")


class CheckedReply(Schema):
    """A sound recipe, with every knob and how many steps it takes."""

    document: dict[str, Any]
    sha256: str
    steps_by_stage: list[int]


@router.get("", response={200: RecipePage, **REFUSALS}, summary="List recipes")
def list_recipes(request: HttpRequest, query: Query[RecipesQuery]) -> scope.Page[Recipe]:
    """The newest version of each name, or all versions of one; at most 100 a page."""
    rows = Recipe.objects.newest() if query.name is None else Recipe.objects.filter(name=query.name)
    return scope.page(rows.defer("document"), request, query)


@router.post("", response={201: RecipeReply, **WRITE_REFUSALS}, summary="Save a recipe")
def create_recipe(request: HttpRequest, body: RecipeBody) -> Status[Recipe]:
    """Saves the next version of its name; 409 where nothing differs from the newest one."""
    owner = scope.project(request, body.project)
    saved = recipes.save(body.parsed(), project=owner, actor=scope.actor(request))
    return Status(201, saved)


@router.post("/validate", response={200: CheckedReply, **WRITE_REFUSALS}, summary="Check a recipe")
def validate_recipe(request: HttpRequest, body: RecipeText) -> dict[str, object]:  # noqa: ARG001 (Ninja's)
    """Says what is wrong with each knob, or the whole recipe with its defaults; saves nothing."""
    document = body.parsed()
    return {
        "document": document.model_dump(mode="json"),
        "sha256": recipes.digest(document),
        "steps_by_stage": document.steps_by_stage,
    }


@router.get(
    "/schema", response={200: dict[str, Any], 401: ErrorList}, summary="The recipe's JSON schema"
)
def recipe_schema(request: HttpRequest) -> dict[str, Any]:  # noqa: ARG001 (Ninja's)
    """Every stage and knob with its bounds, default and help."""
    return RecipeDocument.model_json_schema()


@router.get("/{public_id}", response={200: RecipeReply, **REFUSALS}, summary="Read a recipe")
def read_recipe(request: HttpRequest, public_id: str) -> Recipe:
    """The recipe with every knob."""
    return scope.visible(Recipe.objects.all(), request, public_id)


@router.get("/{public_id}/yaml", response=REFUSALS, summary="A recipe as YAML")
def read_yaml(request: HttpRequest, public_id: str) -> HttpResponse:
    """The text that POST takes back."""
    recipe = scope.visible(Recipe.objects.all(), request, public_id)
    text = recipe_yaml.write_yaml(recipe.contract)
    return HttpResponse(text, content_type="application/yaml; charset=utf-8")
