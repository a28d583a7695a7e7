"""Factories: rows with what a test does not care about filled in."""

from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.models import ModelRoot, Pair, PairTeacher, PromptSet, Recipe, RegisteredModel, Run

RECIPE = RecipeDocument.model_validate(
    {"name": "Sums", "stages": [{"kind": "distill", "steps": 3}]}
).model_dump(mode="json")


def make_model(project, name="student", **overrides):
    ModelRoot.objects.get_or_create(project=project, path="/models")
    fields = {"source_kind": "local", "path": f"/models/{name}", "state": "ready"}
    return RegisteredModel.objects.create(project=project, name=name, **{**fields, **overrides})


def make_pair(project, name="pair", **overrides):
    pair = Pair.objects.create(
        project=project,
        name=name,
        **{"student": make_model(project, f"{name} student"), **overrides},
    )
    PairTeacher.objects.create(pair=pair, model=make_model(project, f"{name} teacher"))
    return pair


def make_prompt_set(project, name="prompts", **overrides):
    fields = {
        "version": 1,
        "state": "ready",
        "format": "jsonl",
        "source_name": "prompts.jsonl",
        "sha256": "0" * 64,
        "storage_key": f"{name}.jsonl",
        "rows": 2,
        "stats": {"answers": 2},
    }
    return PromptSet.objects.create(project=project, name=name, **{**fields, **overrides})


def make_recipe(project, name="Sums", **overrides):
    fields = {"version": 1, "document": RECIPE, "sha256": "1" * 64}
    return Recipe.objects.create(project=project, name=name, **{**fields, **overrides})


def make_run(project, **overrides):
    fields = {"name": "run", "snapshot": {}, **overrides}
    if "pair" not in fields:
        fields["pair"] = make_pair(project, f"pair {Pair.objects.count()}")
    if "recipe" not in fields:
        fields["recipe"] = make_recipe(project, f"recipe {Recipe.objects.count()}")
    if "train_set" not in fields:
        fields["train_set"] = make_prompt_set(project, f"prompts {PromptSet.objects.count()}")
    return Run.objects.create(project=project, **fields)
