"""Recipes for other trainers: what they have keys for is set, and the rest stands in comments."""

import pytest
import yaml
from django.urls import reverse

from opdcore.contract.recipe import Recipe
from tests.webapp.rescues import make_failing
from tests.webapp.rows import make_recipe
from webapp.services import exports

DISTILL = {"kind": "distill", "steps": 30, "prompts_per_step": 8, "rollouts_per_prompt": 2}
COLD = {"kind": "cold_start", "steps": 12, "responses_per_step": 4}


def recipe(*stages, **more):
    return Recipe.model_validate({"name": "Sums", "stages": stages, **more})


def written(trainer, *stages):
    """The documents of a recipe's stages, without the head that holds only comments."""
    text = exports.write(recipe(*stages), trainer)
    return [one for one in yaml.safe_load_all(text) if one is not None], text


def test_trl_gets_rate_batch_length_and_divergence():
    (document,), text = written("trl", DISTILL | {"form": "full", "divergence": "forward"})
    assert document["max_steps"] == 30
    assert document["per_device_train_batch_size"] == 16
    assert document["max_completion_length"] == 7168
    assert (document["beta"], document["learning_rate"]) == (0.0, 1e-6)
    assert "another loss" not in text
    assert "repeat each prompt" in text


def test_trl_says_that_it_compares_the_full_vocabulary():
    _, text = written("trl", DISTILL)
    assert "here it was top_k: another loss" in text
    assert "#   k: 16" in text


def test_a_jensen_shannon_divergence_keeps_its_mixture_in_trl():
    (document,), _ = written(
        "trl", DISTILL | {"divergence": "jsd", "jsd_beta": 0.3, "form": "full"}
    )
    assert document["beta"] == 0.3


def test_stages_become_documents_in_their_order():
    (cold, distilled), text = written("trl", COLD, DISTILL)
    assert (cold["max_steps"], distilled["max_steps"]) == (12, 30)
    assert cold["completion_only_loss"] is True
    assert "Sample the teacher's responses first" in text


@pytest.mark.parametrize(
    ("knobs", "mode", "by_policy_gradient", "exact"),
    [
        ({"form": "sampled"}, "k1", True, True),
        ({"form": "sampled", "sampled_loss": "k3"}, "k3", False, True),
        (
            {"divergence": "forward", "support": "teacher", "normalisation": "tail_bucket"},
            "forward_kl_topk_tail",
            False,
            True,
        ),
        ({}, "k1", True, False),
    ],
)
def test_verl_gets_the_loss_that_is_meant_or_hears_that_it_is_the_nearest(
    knobs, mode, by_policy_gradient, exact
):
    (document,), text = written("verl", DISTILL | knobs)
    loss = document["distillation"]["distillation_loss"]
    assert (loss["loss_mode"], loss["use_policy_gradient"]) == (mode, by_policy_gradient)
    assert loss["use_task_rewards"] is False
    assert ("another loss" not in text) is exact


def test_verl_gets_batches_lengths_and_the_teachers_window():
    stage = DISTILL | {"max_prompt_tokens": 100, "max_response_tokens": 200}
    (document,), _ = written("verl", stage)
    assert document["data"]["train_batch_size"] == 8
    assert document["actor_rollout_ref"]["rollout"]["n"] == 2
    teacher = document["distillation"]["teacher_models"]["teacher_model"]
    assert teacher["inference"]["max_model_len"] == 301
    assert document["trainer"]["total_training_steps"] == 30


def test_staying_near_the_start_is_a_kl_loss_in_verl_and_a_comment_in_trl():
    stage = DISTILL | {"initial_kl_weight": 0.1}
    (document,), _ = written("verl", stage)
    assert document["actor_rollout_ref"]["actor"]["kl_loss_coef"] == 0.1
    _, text = written("trl", stage)
    assert "#   initial_kl_weight: 0.1" in text


def test_adapters_take_their_own_rate():
    lora = DISTILL | {"tuning": "lora", "lora_learning_rate": 2e-5, "lora_rank": 8}
    (trl,), _ = written("trl", lora)
    assert (trl["learning_rate"], trl["lora_r"], trl["use_peft"]) == (2e-5, 8, True)
    (verl,), _ = written("verl", lora)
    assert verl["actor_rollout_ref"]["model"]["lora_rank"] == 8


@pytest.mark.parametrize("trainer", ["trl", "verl"])
@pytest.mark.parametrize("stage", [DISTILL, COLD], ids=["distill", "cold_start"])
def test_every_knob_is_expressed_or_told_or_asks_for_nothing(trainer, stage):
    document = recipe(stage)
    (only,) = document.stages
    sheet = exports.Sheet(only)
    exports._WRITERS[trainer, only.kind](sheet, document)
    told = {line.partition(":")[0] for line in sheet.unsaid()}
    idle = {name for name, value in exports.IDLE.items() if getattr(only, name, None) == value}
    left = set(type(only).model_fields) - sheet.said - told - idle - exports.BESIDE.keys()
    assert left == set()


def test_what_trains_nothing_and_how_it_was_graded_is_said_at_the_head():
    text = exports.write(recipe(DISTILL, {"kind": "evaluate"}), "verl")
    assert "Not written, since only distillations and cold starts are: evaluate." in text
    assert "verifier none" in text


def test_a_recipe_is_downloaded_for_each_trainer(project, viewer, stranger, browse):
    row = make_recipe(project)
    for trainer in exports.NAMES:
        there = reverse("recipe-export", args=[row.public_id, trainer])
        answer = browse(viewer).get(there)
        assert answer["Content-Disposition"] == f'attachment; filename="sums-v1-{trainer}.yaml"'
        assert browse(stranger).get(there).status_code == 404
    unknown = reverse("recipe-export", args=[row.public_id, "word"])
    assert browse(viewer).get(unknown).status_code == 404
    page = browse(viewer).get(reverse("recipe", args=[row.public_id])).content.decode()
    assert there in page


def test_a_plans_recipe_is_downloaded_before_it_is_saved(project, member, browse):
    run = make_failing(project, member)
    there = reverse("run-rescue-export", args=[run.public_id, "verl"])
    text = browse(member).get(there).content.decode()
    assert "Stage: cold_start." in text
    run.outcome = {"code": "success"}
    run.save()
    assert browse(member).get(there).status_code == 404
