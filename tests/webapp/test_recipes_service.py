"""Recipes: versions, YAML in and out, differences, presets."""

import pytest
from django.core.exceptions import PermissionDenied

from opdcore.contract.errors import BadInput
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.models import Recipe
from webapp.services import recipes
from webapp.services.recipe_yaml import BadRecipe, read_yaml, write_yaml


def document(**knobs):
    return RecipeDocument.model_validate(
        {"name": "Plain", "stages": [{"kind": "distill", **knobs}]}
    )


def test_each_change_is_the_next_version(project, member):
    first = recipes.save(document(), project=project, actor=member)
    second = recipes.save(document(k=8), project=project, actor=member)
    assert (first.version, second.version) == (1, 2)
    assert Recipe.objects.newest().get() == second
    assert second.contract.stages[0].k == 8


def test_nothing_new_is_no_version(project, member):
    recipes.save(document(), project=project, actor=member)
    with pytest.raises(BadInput, match="Nothing differs"):
        recipes.save(document(), project=project, actor=member)


def test_a_viewer_may_not_save(project, viewer):
    with pytest.raises(PermissionDenied):
        recipes.save(document(), project=project, actor=viewer)


def test_yaml_out_is_yaml_in():
    assert read_yaml(write_yaml(document(k=8, learning_rate=1e-6))) == document(
        k=8, learning_rate=1e-6
    )


@pytest.mark.parametrize("text", ["name: \0", "[" * 50_000, "name: 2024-99-99", "version: !!int x"])
def test_text_that_breaks_the_yaml_reader_is_refused_in_words(text):
    with pytest.raises(BadRecipe, match="no YAML that is taken") as caught:
        read_yaml(text)
    assert caught.value.info.code == "recipe.not_yaml"


def test_an_unknown_knob_names_its_path_and_line():
    with pytest.raises(BadRecipe) as caught:
        read_yaml("name: a\nstages:\n  - kind: distill\n    steps: 5\n    topk: 3\n")
    info = caught.value.info
    assert (info.code, info.field) == ("recipe.extra_forbidden", "stages.0.topk (line 5)")


def test_every_fault_is_told_at_once():
    with pytest.raises(BadRecipe) as caught:
        read_yaml("name: a\nseed: -1\nstages:\n  - {kind: distill, k: 0}\n  - {kind: dance}\n")
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["seed (line 2)", "stages.0.k (line 4)", "stages.1 (line 5)"]


def test_an_unfinished_yaml_names_its_line():
    with pytest.raises(BadRecipe) as caught:
        read_yaml("name: a\nstages: [\n")
    assert caught.value.info.field == "line 3"


def test_aliases_and_tags_are_refused():
    with pytest.raises(BadRecipe, match="alias"):
        read_yaml("name: &a x\ndescription: *a\nstages: []\n")
    with pytest.raises(BadRecipe):
        read_yaml("name: !!python/object:os.system x\nstages: []\n")


def test_a_list_is_no_recipe():
    with pytest.raises(BadRecipe, match="no mapping"):
        read_yaml("- a\n")


def test_the_difference_names_only_what_changed():
    before, after = (one.model_dump(mode="json") for one in (document(), document(k=8)))
    assert recipes.changes(before, after) == [recipes.Change("stages.0.k", "16", "8")]


def test_presets_load_once(project, member):
    names = [recipe.name for recipe in recipes.load_presets(project=project, actor=member)]
    assert {"Standard OPD", "Laboratory, sums"} <= set(names)
    recipes.load_presets(project=project, actor=member)
    assert Recipe.objects.count() == len(names)
