"""Several teachers, tags and privileged texts at a launch: what is refused, warned of, and frozen."""

import pytest

from tests.webapp.rows import RECIPE, make_model, make_pair, make_recipe
from tests.webapp.test_launch_verifiers import stored
from webapp.models import PairTeacher, Run
from webapp.services import launch_preview, runs

SUM = {"prompt": "1 + 1?", "answer": "2", "tags": ["sums"]}
CODE = {"prompt": "2 + 2?", "answer": "4", "tags": ["code", "easy"]}
RULE = {"source": "rule", "rule": "Think first.", "form": "{privileged} {prompt}"}
OWN = {"source": "prompt", "form": "{privileged} {prompt}"}


def parts(project, rows, **teacher):
    pair = make_pair(project, "taught")
    pair.teachers.update(**teacher)
    return {
        "project": project,
        "pair": pair,
        "train": stored(project, "train", rows),
        "held_out": stored(project, "held", [SUM]),
        "recipe": make_recipe(project, "plain", document=RECIPE),
    }


def refused(actor, chosen):
    with pytest.raises(runs.LaunchRefused) as caught:
        runs.launch(actor=actor, **chosen)
    assert not Run.objects.exists()
    return {(one.code, one.field): one.message for one in caught.value.problems}


def test_prompts_that_no_teacher_scores_are_refused_by_their_tags(project, member):
    told = refused(member, parts(project, [SUM, CODE], tags=["sums"]))
    assert list(told) == [("teachers.nobody_scores", "train")]
    assert "tagged code, easy" in told["teachers.nobody_scores", "train"]
    assert "for sums" in told["teachers.nobody_scores", "train"]


def test_a_teacher_for_each_tag_is_launched_and_frozen(project, member):
    chosen = parts(project, [SUM, CODE], tags=["sums"])
    PairTeacher.objects.create(
        pair=chosen["pair"], model=make_model(project, "coder"), tags=["code"], weight=2.0, position=1
    )  # fmt: skip
    run = runs.launch(actor=member, **chosen)
    said = [one["participant"] for one in run.snapshot["teachers"]]
    assert [(one["tags"], one["weight"]) for one in said] == [(["sums"], 1.0), (["code"], 2.0)]


def test_a_diagnosis_of_several_teachers_is_refused(project, member):
    chosen = parts(project, [SUM])
    PairTeacher.objects.create(
        pair=chosen["pair"], model=make_model(project, "another"), position=1
    )
    document = RECIPE | {"stages": [{"kind": "diagnose"}, *RECIPE["stages"]]}
    chosen["recipe"] = make_recipe(project, "probing", document=document)
    assert ("diagnose.several_teachers", "pair") in refused(member, chosen)


def test_prompts_without_the_text_that_their_teacher_reads_are_refused(project, member):
    told = refused(member, parts(project, [SUM | {"privileged": "It is 2."}, CODE], privileged=OWN))
    assert "1 prompts of train" in told["prompt_set.no_privileged", "train"]
    assert ("prompt_set.no_privileged", "held_out") in told


def test_texts_of_each_prompts_own_are_warned_of_and_a_rule_is_not(project):
    def warned(privileged):
        chosen = parts(project, [SUM], privileged=privileged)
        chosen.pop("project")
        recipe = chosen.pop("recipe").contract
        told = launch_preview.warnings(chosen.pop("pair"), recipe, **chosen)
        PairTeacher.objects.all().delete()
        return {one.code for one in told}

    assert "launch.privileged_per_prompt" in warned(OWN)


def test_a_rule_is_frozen_with_the_run_and_shown_in_the_example(project, member):
    chosen = parts(project, [SUM], privileged=RULE)
    run = runs.launch(actor=member, **chosen)
    (said,) = run.snapshot["teachers"]
    assert said["participant"]["privileged"]["rule"] == "Think first."
    told = launch_preview.warnings(
        chosen["pair"], chosen["recipe"].contract, train=chosen["train"], held_out=None
    )
    assert "launch.privileged_per_prompt" not in {one.code for one in told}


def test_an_average_of_adapters_is_refused(project, member):
    chosen = parts(project, [SUM], follows="average")
    document = RECIPE | {"stages": [RECIPE["stages"][0] | {"tuning": "lora"}]}
    chosen["recipe"] = make_recipe(project, "adapters", document=document)
    assert ("teachers.average_of_adapters", "recipe") in refused(member, chosen)
